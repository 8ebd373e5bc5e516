// What the page knows about the data: schema, queries and mutators of the official client.
//
// The server half of each name lives in Python (demo_schema.py, demo_queries.py, demo_mutators.py).
// A query here runs on the rows the browser has; the one of the same name there decides which rows
// it gets. A mutator here predicts the outcome at once; the one there decides it.

import {
  boolean,
  createBuilder,
  createSchema,
  defineMutator,
  defineMutators,
  defineQueries,
  defineQuery,
  escapeLike,
  number,
  relationships,
  string,
  table,
} from "@rocicorp/zero";

const user = table("user")
  .columns({ id: string(), name: string(), color: string() })
  .primaryKey("id");

const issue = table("issue")
  .columns({
    id: string(),
    title: string(),
    description: string(),
    open: boolean(),
    priority: string(),
    creatorID: string().from("creator_id"),
    assigneeID: string().from("assignee_id").optional(),
    created: number().from("created_at"),
    modified: number().from("modified_at"),
  })
  .primaryKey("id");

const comment = table("comment")
  .columns({
    id: string(),
    issueID: string().from("issue_id"),
    authorID: string().from("author_id"),
    body: string(),
    created: number().from("created_at"),
  })
  .primaryKey("id");

const label = table("label")
  .columns({ id: string(), name: string(), color: string() })
  .primaryKey("id");

const issueLabel = table("issueLabel")
  .from("issue_label")
  .columns({ issueID: string().from("issue_id"), labelID: string().from("label_id") })
  .primaryKey("issueID", "labelID");

const issueRelations = relationships(issue, ({ one, many }) => ({
  creator: one({ sourceField: ["creatorID"], destField: ["id"], destSchema: user }),
  assignee: one({ sourceField: ["assigneeID"], destField: ["id"], destSchema: user }),
  comments: many({ sourceField: ["id"], destField: ["issueID"], destSchema: comment }),
  labels: many(
    { sourceField: ["id"], destField: ["issueID"], destSchema: issueLabel },
    { sourceField: ["labelID"], destField: ["id"], destSchema: label },
  ),
}));

const commentRelations = relationships(comment, ({ one }) => ({
  author: one({ sourceField: ["authorID"], destField: ["id"], destSchema: user }),
}));

export const schema = createSchema({
  tables: [user, issue, comment, label, issueLabel],
  relationships: [issueRelations, commentRelations],
});

const zql = createBuilder(schema);

// Every listed issue brings its newest comment, so "has no comments" can be told locally.
const listed = (query) =>
  query
    .related("labels")
    .related("assignee")
    .related("comments", (comments) => comments.orderBy("created", "desc").limit(1));

export const queries = defineQueries({
  users: { all: defineQuery(() => zql.user.orderBy("name", "asc")) },
  labels: { all: defineQuery(() => zql.label.orderBy("name", "asc")) },
  issues: {
    list: defineQuery(({ args }) => {
      let query = zql.issue;
      if (args.open !== null) query = query.where("open", args.open);
      if (args.label !== null) {
        query = query.whereExists("labels", (labels) => labels.where("id", args.label));
      }
      if (args.assignee !== null) query = query.where("assigneeID", args.assignee);
      if (args.search !== "") query = query.where("title", "ILIKE", `%${escapeLike(args.search)}%`);
      return listed(query).orderBy(args.sort, "desc").limit(args.limit);
    }),
    // NOT EXISTS on the server. The client evaluates no NOT EXISTS (it cannot know about rows it
    // does not have), so here it is all local issues; the page leaves out those with a comment.
    uncommented: defineQuery(() => listed(zql.issue).orderBy("created", "desc")),
    detail: defineQuery(({ args }) =>
      zql.issue
        .where("id", args.id)
        .related("labels")
        .related("creator")
        .related("assignee")
        .related("comments", (comments) =>
          comments.related("author").orderBy("created", "asc"),
        )
        .one(),
    ),
  },
});

export const mutators = defineMutators({
  issues: {
    create: defineMutator(async ({ tx, args }) => {
      const now = Date.now();
      await tx.mutate.issue.insert({ ...args, open: true, created: now, modified: now });
    }),
    update: defineMutator(async ({ tx, args }) => {
      await tx.mutate.issue.update({ ...args, modified: Date.now() });
    }),
    delete: defineMutator(async ({ tx, args }) => {
      await tx.mutate.issue.delete({ id: args.id });
    }),
    setLabel: defineMutator(async ({ tx, args }) => {
      const key = { issueID: args.issueID, labelID: args.labelID };
      await (args.on ? tx.mutate.issueLabel.insert(key) : tx.mutate.issueLabel.delete(key));
    }),
    // The server always refuses this one: the prediction shows for a moment, then it is undone.
    shout: defineMutator(async ({ tx, args }) => {
      const found = await tx.run(zql.issue.where("id", args.id).one());
      if (found) await tx.mutate.issue.update({ id: args.id, title: `${found.title.toUpperCase()}!!!` });
    }),
  },
  comments: {
    add: defineMutator(async ({ tx, args }) => {
      const now = Date.now();
      await tx.mutate.comment.insert({ ...args, created: now });
      await tx.mutate.issue.update({ id: args.issueID, modified: now });
    }),
    delete: defineMutator(async ({ tx, args }) => {
      await tx.mutate.comment.delete({ id: args.id });
    }),
  },
});
