// Runs official Zero clients on behalf of a test: one JSON command per line on stdin, one JSON
// event per line on stdout.
//
//   node driver.mjs PACKAGE_ROOT        PACKAGE_ROOT/node_modules/@rocicorp/zero is the release
//
// Commands carry {id, cmd, ...}; each is answered by {event:'reply', id, result | error}. Everything
// a client tells its application is reported as it happens: {event:'view'|'connection'|'mutation'|
// 'updateNeeded'|'clientStateNotFound', ...}. Clients of one process with equal `userID` and
// `storageKey` share a named in-memory store and so form one client group, like tabs of a browser.

import {Console} from 'node:console';
import {createRequire} from 'node:module';
import {join, resolve} from 'node:path';
import {createInterface} from 'node:readline';
import {pathToFileURL} from 'node:url';

import {defineApp} from './app.mjs';

// stdout belongs to the protocol; whatever a client logs is for whoever reads a failed test.
globalThis.console = new Console(process.stderr, process.stderr);

// Browsers end every failed connection with a `close` event; the WebSocket of Node 22 leaves it out
// when the connection was never open, and the client would wait for its own 10 s instead.
globalThis.WebSocket = class extends globalThis.WebSocket {
  constructor(...args) {
    super(...args);
    let open = false;
    let closed = false;
    this.addEventListener('open', () => (open = true));
    this.addEventListener('close', () => (closed = true));
    this.addEventListener('error', () =>
      setImmediate(() => {
        if (!open && !closed) {
          this.dispatchEvent(
            Object.assign(new Event('close'), {code: 1006, reason: '', wasClean: false}),
          );
        }
      }),
    );
  }
};

const require = createRequire(join(resolve(process.argv[2]), 'package.json'));
const zero = await import(pathToFileURL(require.resolve('@rocicorp/zero')).href);

const clients = new Map();

function report(event) {
  process.stdout.write(JSON.stringify(event) + '\n');
}

function text(error) {
  return error instanceof Error ? error.message : String(error);
}

function clientOf({client}) {
  const found = clients.get(client);
  if (!found) {
    throw new Error(`no client ${client}: open it first`);
  }
  return found;
}

function lookUp(registry, name) {
  return name.split('.').reduce((tree, key) => tree[key], registry);
}

// A missing one() relationship is undefined in JavaScript and null in SQL's answer.
function plain(data) {
  const shown = data === undefined ? null : data;
  return JSON.parse(JSON.stringify(shown, (_, value) => (value === undefined ? null : value)));
}

const commands = {
  async open({client, options, legacyQueries}) {
    const app = defineApp(zero, {legacyQueries});
    const z = new zero.Zero({
      kvStore: 'mem',
      logLevel: 'error',
      schema: app.schema,
      mutators: app.mutators,
      onUpdateNeeded: reason => report({event: 'updateNeeded', client, reason}),
      onClientStateNotFound: () => report({event: 'clientStateNotFound', client}),
      ...options,
    });
    clients.set(client, {z, app, views: new Map()});
    const {state} = z.connection;
    report({event: 'connection', client, state: plain(state.current)});
    state.subscribe(now => report({event: 'connection', client, state: plain(now)}));
    return {clientID: z.clientID, clientGroupID: await z.clientGroupID, version: z.version};
  },

  materialize({client, view, name, args, ttl}) {
    const {z, app, views} = clientOf({client});
    const query = lookUp(app.queries, name);
    return watch(client, z, views, view, query(args), ttl);
  },

  // A query the application never named: the client sends its AST (legacy, where enabled).
  materializeLegacy({client, view, table, where, ttl}) {
    const {z, app, views} = clientOf({client});
    let query = app.zql[table];
    for (const condition of where ?? []) {
      query = query.where(...condition);
    }
    return watch(client, z, views, view, query, ttl);
  },

  destroyView({client, view}) {
    const {views} = clientOf({client});
    views.get(view).typed.destroy();
    views.delete(view);
  },

  // All views of one client at one moment: what a frame rendered now would show.
  snapshot({client}) {
    const shown = {};
    for (const [name, {typed, type}] of clientOf({client}).views) {
      shown[name] = {data: plain(typed.data), type};
    }
    return shown;
  },

  // Every row in the client's local store, by table: the place to find left-over rows.
  async rows({client}) {
    const {z, app} = clientOf({client});
    const stored = {};
    for (const table of Object.keys(app.schema.tables)) {
      stored[table] = plain(await z.inspector.client.rows(table));
    }
    return stored;
  },

  // The inspector: what it says, as plain data. Digests become what they hold.
  async inspect({client, what, args}) {
    const {inspector} = clientOf({client}).z;
    switch (what) {
      case 'authenticate':
        return inspector.authenticate(args[0]);
      case 'version':
        return inspector.serverVersion();
      case 'metrics':
        return summaries(await inspector.metrics());
      case 'queries':
        return (await inspector.client.queries()).map(shownQuery);
      case 'groupQueries':
        return (await inspector.clientGroup.queries()).map(shownQuery);
      case 'analyzeQueries':
        return Promise.all((await inspector.client.queries()).map(query => query.analyze(args[0])));
      case 'analyzeAST':
        return inspector.analyzeServerAST(...args);
      case 'analyzeNamed':
        return inspector.analyzeNamedQuery(...args);
      default:
        throw new Error(`the inspector cannot be asked for ${what}`);
    }
  },

  async mutate({client, tag, name, args}) {
    const {z, app} = clientOf({client});
    const outcome = z.mutate(lookUp(app.mutators, name)(args));
    for (const phase of ['client', 'server']) {
      outcome[phase].then(
        result => report({event: 'mutation', client, tag, phase, result: plain(result)}),
        error => report({event: 'mutation', client, tag, phase, result: {type: 'rejected', error: text(error)}}),
      );
    }
  },

  async connect({client}) {
    await clientOf({client}).z.connection.connect();
  },

  async close({client}) {
    await clientOf({client}).z.close();
    clients.delete(client);
  },
};

function watch(client, z, views, view, query, ttl) {
  const typed = z.materialize(query, ttl === undefined ? undefined : {ttl});
  const entry = {typed, type: 'unknown'};
  views.set(view, entry);
  typed.addListener((data, type, error) => {
    entry.type = type;
    report({event: 'view', client, view, data: plain(data), type, error: plain(error)});
  });
}

function summaries(metrics) {
  const digests = Object.entries(metrics ?? {}).filter(([, digest]) => digest?.quantile);
  return Object.fromEntries(
    digests.map(([name, digest]) => [
      name,
      {count: digest.count(), median: plain(digest.quantile(0.5))},
    ]),
  );
}

function shownQuery(query) {
  const {id, clientID, name, args, got, deleted, ttl, rowCount, serverZQL} = query;
  const {hydrateServer, updateServerP50} = query;
  return plain({
    id, clientID, name, args, got, deleted, ttl, rowCount, serverZQL, hydrateServer,
    updateServerP50, metrics: summaries(query.metrics),
  });
}

for await (const line of createInterface({input: process.stdin})) {
  const {id, cmd, ...rest} = JSON.parse(line);
  // Not awaited: a command that waits for the network must not hold up the next one.
  (async () => commands[cmd](rest))().then(
    result => report({event: 'reply', id, result: result ?? null}),
    error => report({event: 'reply', id, error: text(error)}),
  );
}
process.exit(0);
