// The demo page: live queries in, mutations out, plain DOM in between.
//
// For tests, every element a person reads or operates has a data-testid:
//   connection          data-state: connecting | connected | disconnected | error | closed | needs-auth
//   acting-as           select: the user that creates issues and comments
//   new-issue-title, new-issue-submit
//   filter-search, filter-status (open|closed|all), filter-label, filter-assignee, sort,
//   filter-uncommented  (the NOT EXISTS query)
//   issue-count         number of listed issues
//   list-state          data-state: unknown (local rows only) | complete (server has answered) | error
//   last-latency        ms from the database's clock_timestamp() of a change made elsewhere to its
//                       rendering here ("none yet" before the first one)
//   issue-list > issue-row   data-id, data-open, data-pending (true while optimistic); click opens it
//   load-more           fifty more
//   issue-detail        data-id, data-state; holds detail-title (input), detail-save, detail-toggle
//                       (close/reopen), detail-priority, detail-assignee, detail-label (buttons with
//                       data-id and aria-pressed), comment (data-id), comment-body, comment-submit,
//                       detail-delete, error-demo
//   activity > activity-item  newest first; data-name (mutator), data-state: optimistic | confirmed |
//                       rejected; a rejected one shows the server's message
//   client-missing      instead of all that, when npm could not fetch the client
//
// Flow: open page -> connection is "connected" and list-state "complete" with 50 rows -> change a
// row with SQL: the row moves to the top and last-latency gets a number -> create an issue: it is
// listed first, its activity item goes optimistic -> confirmed -> open it, comment, toggle a label,
// close it -> error-demo: the title shouts for a moment, then the item is rejected and it is undone.
//
// window.demo = {zero, queries, mutators} is there for the console.

import { Zero } from "@rocicorp/zero";
import { mutators, queries, schema } from "./model.js";

const PAGE_SIZE = 50;
const config = JSON.parse(document.getElementById("config").textContent);
const cacheURL = `${location.protocol}//${location.hostname}:${config.zeroPort}`;
const zero = new Zero({ cacheURL, schema, mutators, logLevel: "error" });
window.demo = { zero, queries, mutators };

const filters = {
  search: "",
  status: "open",
  label: "",
  assignee: "",
  sort: "modified",
  uncommented: false,
  limit: PAGE_SIZE,
};
let people = [];
let labels = [];
let selected = null;
let detail = null;
// issue id -> number of changes the database has not answered yet
const pending = new Map();

const byId = (id) => document.getElementById(id);
const byTest = (name) => document.querySelector(`[data-testid="${name}"]`);

// el("li", {class: "x", onclick: f}, child, "text")
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const option = (value, text, chosen) => el("option", { value, selected: value === chosen }, text);
const chip = (label) => el("span", { class: "chip", style: `--color: ${label.color}` }, label.name);
const when = (ms) => new Date(ms).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

// --- changes ---

async function change(name, issueID, request) {
  const started = performance.now();
  const text = el("span", {}, "optimistic");
  const item = el("li", { "data-testid": "activity-item", "data-name": name, "data-state": "optimistic" },
    el("b", {}, name), " ", text);
  byId("activity").prepend(item);
  while (byId("activity").children.length > 20) byId("activity").lastChild.remove();
  markPending(issueID, +1);
  const settle = (state, words) => {
    const took = Math.round(performance.now() - started);
    item.dataset.state = state;
    text.textContent = `${words} after ${took} ms`;
    markPending(issueID, -1);
  };
  const result = zero.mutate(request);
  try {
    const local = await result.client;
    if (local.type === "error") return settle("rejected", `refused here: ${local.error.message}`);
    text.textContent = `optimistic after ${(performance.now() - started).toFixed(1)} ms`;
    const answer = await result.server;
    if (answer.type === "error") settle("rejected", `undone, “${answer.error.message}”,`);
    else settle("confirmed", "confirmed by the database");
  } catch (error) {
    settle("rejected", `failed: ${error.message}`);
  }
}

function markPending(issueID, by) {
  pending.set(issueID, (pending.get(issueID) ?? 0) + by);
  const row = document.querySelector(`[data-testid="issue-row"][data-id="${CSS.escape(issueID)}"]`);
  if (row) row.dataset.pending = String(pending.get(issueID) > 0);
}

// --- the list ---

let listView = null;
let newestSeen = 0;

function watchList() {
  listView?.destroy();
  newestSeen = 0;
  const { search, status, label, assignee, sort, uncommented, limit } = filters;
  listView = zero.materialize(
    uncommented
      ? queries.issues.uncommented({ limit })
      : queries.issues.list({
          open: status === "all" ? null : status === "open",
          label: label || null,
          assignee: assignee || null,
          search,
          sort,
          limit,
        }),
  );
  listView.addListener(renderList);
}

function renderList(data, state, error) {
  const rows = filters.uncommented
    ? data.filter((issue) => issue.comments.length === 0).slice(0, filters.limit)
    : data;
  measure(rows, state);
  byTest("issue-count").textContent = rows.length;
  const badge = byTest("list-state");
  badge.dataset.state = state;
  badge.textContent = { unknown: "local rows", complete: "in sync with the server" }[state]
    ?? `query failed: ${error?.message ?? "unknown error"}`;
  byId("issues").replaceChildren(...rows.map(issueRow));
  byId("more").hidden = rows.length < filters.limit;
}

function issueRow(issue) {
  const last = issue.comments[0];
  return el("li", {
      "data-testid": "issue-row",
      "data-id": issue.id,
      "data-open": String(issue.open),
      "data-pending": String((pending.get(issue.id) ?? 0) > 0),
      "aria-current": issue.id === selected ? "true" : undefined,
      tabindex: "0",
      onclick: () => select(issue.id),
      onkeydown: (event) => event.key === "Enter" && select(issue.id),
    },
    el("div", { class: "title" }, el("i", { class: `dot ${issue.priority}`, title: `${issue.priority} priority` }),
      el("span", {}, issue.title), ...issue.labels.map(chip)),
    el("div", { class: "meta" },
      `${issue.id.slice(0, 8)} · ${issue.assignee?.name ?? "nobody"} · ${when(issue.modified)}`,
      last ? ` · “${last.body}”` : ""),
  );
}

// A change that this page did not make carries the database's own time stamp.
function measure(rows, state) {
  const newest = rows.reduce((best, row) => (row.modified > (best?.modified ?? 0) ? row : best), undefined);
  if (!newest) return;
  const isNews = newestSeen > 0 && newest.modified > newestSeen && state === "complete";
  if (isNews && !pending.get(newest.id)) {
    const ms = Math.max(0, Date.now() - newest.modified);
    if (ms < 60_000) byTest("last-latency").textContent = `${Math.round(ms)} ms`;
  }
  newestSeen = Math.max(newestSeen, newest.modified);
}

// --- one issue ---

let detailView = null;

function select(id) {
  selected = id;
  detailView?.destroy();
  detailView = zero.materialize(queries.issues.detail({ id }));
  detailView.addListener((issue, state) => {
    detail = issue;
    renderDetail(issue, state);
  });
  for (const row of byId("issues").children) {
    row.toggleAttribute("aria-current", row.dataset.id === id);
  }
}

function renderDetail(issue, state) {
  const box = byId("detail");
  box.dataset.state = state;
  if (!issue) {
    box.dataset.id = "";
    const text = state === "complete" ? "This issue no longer exists." : "Loading…";
    box.replaceChildren(el("p", { class: "hint" }, text));
    return;
  }
  // What someone is typing survives a live update.
  const typed = box.dataset.id === issue.id
    ? { title: unsaved(box.querySelector("[name=title]")), body: box.querySelector("[name=body]")?.value }
    : {};
  const focused = box.contains(document.activeElement) ? document.activeElement.name : null;
  box.dataset.id = issue.id;
  box.replaceChildren(titleForm(issue, typed.title), facts(issue), labelButtons(issue),
    el("p", {}, issue.description), ...issue.comments.map(commentItem), commentForm(issue, typed.body));
  if (focused) box.querySelector(`[name="${focused}"]`)?.focus();
}

const unsaved = (input) => (input && input.value !== input.defaultValue ? input.value : undefined);

function titleForm(issue, typed) {
  const input = el("input", { "data-testid": "detail-title", name: "title", value: issue.title, required: true });
  if (typed !== undefined) input.value = typed;
  const save = (event) => {
    event.preventDefault();
    const title = input.value;
    input.defaultValue = title;
    change("issues.update", issue.id, mutators.issues.update({ id: issue.id, title }));
  };
  return el("form", { class: "create", onsubmit: save }, input,
    el("button", { "data-testid": "detail-save" }, "Rename"));
}

function facts(issue) {
  const update = (part) => change("issues.update", issue.id, mutators.issues.update({ id: issue.id, ...part }));
  return el("div", { class: "facts" },
    el("button", { "data-testid": "detail-toggle", onclick: () => update({ open: !issue.open }) },
      issue.open ? "Close" : "Reopen"),
    el("select", { "data-testid": "detail-priority", name: "priority", "aria-label": "Priority",
      onchange: (event) => update({ priority: event.target.value }) },
      ...["low", "medium", "high"].map((name) => option(name, `${name} priority`, issue.priority))),
    el("select", { "data-testid": "detail-assignee", name: "assignee", "aria-label": "Assignee",
      onchange: (event) => update({ assigneeID: event.target.value || null }) },
      option("", "nobody", issue.assigneeID ?? ""),
      ...people.map((person) => option(person.id, person.name, issue.assigneeID))),
    el("button", { "data-testid": "error-demo", class: "quiet",
      onclick: () => change("issues.shout", issue.id, mutators.issues.shout({ id: issue.id })) },
      "Try a forbidden change"),
    el("button", { "data-testid": "detail-delete", class: "quiet danger",
      onclick: () => change("issues.delete", issue.id, mutators.issues.delete({ id: issue.id })) }, "Delete"),
  );
}

function labelButtons(issue) {
  const on = new Set(issue.labels.map((label) => label.id));
  const toggle = (label) => change("issues.setLabel", issue.id,
    mutators.issues.setLabel({ issueID: issue.id, labelID: label.id, on: !on.has(label.id) }));
  return el("div", { class: "labels" }, ...labels.map((label) =>
    el("button", { "data-testid": "detail-label", "data-id": label.id, class: "chip",
      "aria-pressed": String(on.has(label.id)), style: `--color: ${label.color}`,
      onclick: () => toggle(label) }, label.name)));
}

function commentItem(comment) {
  return el("article", { "data-testid": "comment", "data-id": comment.id, class: "comment" },
    el("b", { style: `color: ${comment.author?.color ?? "inherit"}` }, comment.author?.name ?? "?"),
    el("time", {}, when(comment.created)),
    el("button", { class: "quiet", title: "Delete this comment", "data-testid": "comment-delete",
      onclick: () => change("comments.delete", comment.issueID, mutators.comments.delete({ id: comment.id })) }, "×"),
    el("p", {}, comment.body));
}

function commentForm(issue, typed) {
  const body = el("textarea", { "data-testid": "comment-body", name: "body", rows: "2", required: true,
    placeholder: "Write a comment" });
  body.value = typed ?? "";
  const add = (event) => {
    event.preventDefault();
    const args = { id: crypto.randomUUID(), issueID: issue.id, authorID: byId("acting-as").value, body: body.value };
    body.value = "";
    change("comments.add", issue.id, mutators.comments.add(args));
  };
  return el("form", { class: "create", onsubmit: add }, body,
    el("button", { "data-testid": "comment-submit" }, "Comment"));
}

// --- the frame: connection, filters, forms ---

function showConnection(state) {
  const pill = byTest("connection");
  pill.dataset.state = state.name;
  const reason = typeof state.reason === "string" ? state.reason : JSON.stringify(state.reason);
  pill.textContent = state.name === "error" ? "error (click to retry)" : state.name;
  pill.title = state.reason ? reason : cacheURL;
}

function fillChoices() {
  const acting = byId("acting-as");
  acting.replaceChildren(...people.map((person) => option(person.id, person.name, acting.value || "u1")));
  byTest("filter-assignee").replaceChildren(option("", "any assignee", filters.assignee),
    ...people.map((person) => option(person.id, person.name, filters.assignee)));
  byTest("filter-label").replaceChildren(option("", "any label", filters.label),
    ...labels.map((label) => option(label.id, label.name, filters.label)));
  if (detail) renderDetail(detail, byId("detail").dataset.state);
}

let typing = 0;

function readFilters(event) {
  const { name, type, checked, value } = event.target;
  filters[name] = type === "checkbox" ? checked : value;
  filters.limit = PAGE_SIZE;
  for (const field of byId("filters").querySelectorAll("input, select")) {
    // That query takes no other filter.
    if (field.name !== "uncommented") field.disabled = filters.uncommented;
  }
  clearTimeout(typing);
  typing = setTimeout(watchList, name === "search" ? 150 : 0);
}

function createIssue(event) {
  event.preventDefault();
  const form = event.target;
  const id = crypto.randomUUID();
  // Not form.title: that is the tooltip, which every element has.
  const title = form.elements.namedItem("title").value;
  const args = { id, title, description: "", priority: "medium", creatorID: byId("acting-as").value };
  form.reset();
  change("issues.create", id, mutators.issues.create(args));
  select(id);
}

zero.connection.state.subscribe(showConnection);
showConnection(zero.connection.state.current);
byTest("connection").addEventListener("click", () => zero.connection.connect());
byId("filters").addEventListener("input", readFilters);
byId("create").addEventListener("submit", createIssue);
byId("more").addEventListener("click", () => {
  filters.limit += PAGE_SIZE;
  watchList();
});
zero.materialize(queries.users.all()).addListener((rows) => {
  people = rows;
  fillChoices();
});
zero.materialize(queries.labels.all()).addListener((rows) => {
  labels = rows;
  fillChoices();
});
byId("app").hidden = false;
watchList();
