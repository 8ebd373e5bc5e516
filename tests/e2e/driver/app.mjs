// The application as its front end sees it: schema, named queries, mutators.
//
// `zero` is the namespace of whichever release of @rocicorp/zero is under test; both releases
// export the same builders, so one definition serves both. Client names differ from server names
// on purpose (issue -> issues, ownerID -> owner_id): everything on the wire must be translated.

export function defineApp(zero, {legacyQueries = false} = {}) {
  const {table, string, number, boolean, json, relationships, createSchema, createBuilder} = zero;

  const team = table('team').from('teams').columns({id: string(), name: string()}).primaryKey('id');
  const person = table('person')
    .from('people')
    .columns({id: string(), name: string(), teamID: string().optional().from('team_id')})
    .primaryKey('id');
  const issue = table('issue')
    .from('issues')
    .columns({
      id: string(),
      title: string(),
      open: boolean(),
      rank: number().optional(),
      ownerID: string().optional().from('owner_id'),
      created: number(),
      meta: json().optional(),
    })
    .primaryKey('id');
  const comment = table('comment')
    .from('comments')
    .columns({id: string(), issueID: string().from('issue_id'), body: string(), likes: number()})
    .primaryKey('id');
  const label = table('label').from('labels').columns({id: string(), name: string()}).primaryKey('id');
  const issueLabel = table('issueLabel')
    .from('issue_labels')
    .columns({issueID: string().from('issue_id'), labelID: string().from('label_id')})
    .primaryKey('issueID', 'labelID');
  const beat = table('beat').columns({id: string(), n: number()}).primaryKey('id');

  const schema = createSchema({
    tables: [team, person, issue, comment, label, issueLabel, beat],
    relationships: [
      relationships(team, ({many}) => ({
        people: many({sourceField: ['id'], destField: ['teamID'], destSchema: person}),
      })),
      relationships(person, ({one, many}) => ({
        team: one({sourceField: ['teamID'], destField: ['id'], destSchema: team}),
        issues: many({sourceField: ['id'], destField: ['ownerID'], destSchema: issue}),
      })),
      relationships(issue, ({one, many}) => ({
        owner: one({sourceField: ['ownerID'], destField: ['id'], destSchema: person}),
        comments: many({sourceField: ['id'], destField: ['issueID'], destSchema: comment}),
        labels: many(
          {sourceField: ['id'], destField: ['issueID'], destSchema: issueLabel},
          {sourceField: ['labelID'], destField: ['id'], destSchema: label},
        ),
      })),
    ],
    enableLegacyQueries: legacyQueries,
  });
  const zql = createBuilder(schema);
  return {schema, zql, queries: defineQueries(zero, zql), mutators: defineMutators(zero)};
}

function defineQueries({defineQueries, defineQuery}, zql) {
  return defineQueries({
    beat: defineQuery(() => zql.beat),
    issues: {
      all: defineQuery(() => zql.issue),
      open: defineQuery(() => zql.issue.where('open', true)),
      byID: defineQuery(({args}) => zql.issue.where('id', args.id).one()),
      withComments: defineQuery(() => zql.issue.where('open', true).related('comments')),
      withOwner: defineQuery(() => zql.issue.where('open', true).related('owner')),
      withLatestComments: defineQuery(() =>
        zql.issue.related('comments', q => q.orderBy('likes', 'desc').limit(2)),
      ),
      withLabels: defineQuery(() => zql.issue.where('open', true).related('labels')),
      commented: defineQuery(() => zql.issue.whereExists('comments')),
      labelled: defineQuery(({args}) =>
        zql.issue.whereExists('labels', q => q.where('name', args.name)),
      ),
      // The server answers this name with NOT EXISTS, which the client cannot run: it shows
      // every issue it has been sent.
      uncommented: defineQuery(() => zql.issue),
      top: defineQuery(({args}) => zql.issue.orderBy('rank', 'desc').limit(args.limit)),
      after: defineQuery(({args}) =>
        zql.issue
          .orderBy('rank', 'asc')
          .start({rank: args.rank, id: args.id}, {inclusive: args.inclusive ?? false})
          .limit(args.limit),
      ),
      lively: defineQuery(() =>
        zql.issue
          .where(({or, cmp, exists}) =>
            or(cmp('rank', '>=', 60), exists('comments', q => q.where('likes', '>', 2))),
          )
          .orderBy('title', 'desc')
          .limit(3)
          .related('comments', q => q.orderBy('likes', 'desc').limit(1))
          .related('labels'),
      ),
      forbidden: defineQuery(() => zql.issue),
    },
    teams: {
      withOpenIssues: defineQuery(() =>
        zql.team.whereExists('people', q => q.whereExists('issues', r => r.where('open', true))),
      ),
      tree: defineQuery(() => zql.team.related('people', q => q.related('issues'))),
    },
  });
}

function defineMutators({defineMutators, defineMutator}) {
  return defineMutators({
    issue: {
      create: defineMutator(async ({tx, args}) => {
        await tx.mutate.issue.insert({...args, created: 0});
      }),
      update: defineMutator(async ({tx, args}) => {
        await tx.mutate.issue.update(args);
      }),
      delete: defineMutator(async ({tx, args}) => {
        await tx.mutate.issue.delete(args);
      }),
      // The server gives the next free rank; the client can only guess 0.
      append: defineMutator(async ({tx, args}) => {
        await tx.mutate.issue.insert({...args, open: true, rank: 0, created: 0});
      }),
      // The server refuses to rename to an empty title; the client does not know the rule.
      rename: defineMutator(async ({tx, args}) => {
        await tx.mutate.issue.update(args);
      }),
      failOnClient: defineMutator(async () => {
        throw new Error('the client refuses');
      }),
    },
  });
}
