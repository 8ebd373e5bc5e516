// Drives headless Chromium on behalf of a test: one JSON command per line on stdin, one JSON event
// per line on stdout.
//
//   node browser.mjs PACKAGE_ROOT CHROMIUM
//
// Commands carry {id, cmd, tab, ...}; each is answered by {event:'reply', id, result | error}. Tabs
// of one `profile` share storage, so Zero clients in them form one client group. What a page writes
// to its console as an error, or throws, is reported as {event:'problem', tab, text}.

import {Console} from 'node:console';
import {createRequire} from 'node:module';
import {join, resolve} from 'node:path';
import {createInterface} from 'node:readline';

globalThis.console = new Console(process.stderr, process.stderr);

const [, , packageRoot, executablePath] = process.argv;
const {chromium} = createRequire(join(resolve(packageRoot), 'package.json'))('playwright-core');

const browser = await chromium.launch({
  executablePath,
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
  ],
});
const profiles = new Map();
const tabs = new Map();

function report(event) {
  process.stdout.write(JSON.stringify(event) + '\n');
}

const commands = {
  async open({tab, profile, url}) {
    if (!profiles.has(profile)) {
      profiles.set(profile, await browser.newContext());
    }
    const page = await profiles.get(profile).newPage();
    tabs.set(tab, page);
    page.on('pageerror', error => report({event: 'problem', tab, text: String(error)}));
    page.on('console', message => {
      if (message.type() === 'error') {
        report({event: 'problem', tab, text: message.text()});
      }
    });
    await page.goto(url);
  },

  // `script` is the text of a function of `argument`; it may return a promise.
  evaluate: ({tab, script, argument}) =>
    tabs.get(tab).evaluate(`(${script})(${JSON.stringify(argument ?? null)})`),

  // Asks again at every animation frame until the function returns something true.
  async until({tab, script, argument, timeout}) {
    const call = `(${script})(${JSON.stringify(argument ?? null)})`;
    await tabs.get(tab).waitForFunction(call, null, {timeout});
  },

  click: ({tab, selector}) => tabs.get(tab).click(selector, {timeout: 5000}),
  fill: ({tab, selector, text}) => tabs.get(tab).fill(selector, text, {timeout: 5000}),
  async select({tab, selector, value}) {
    await tabs.get(tab).selectOption(selector, value, {timeout: 5000});
  },
  async screenshot({tab, path}) {
    await tabs.get(tab).screenshot({path});
  },
  close: ({tab}) => tabs.get(tab).close(),
};

for await (const line of createInterface({input: process.stdin})) {
  const {id, cmd, ...rest} = JSON.parse(line);
  (async () => commands[cmd](rest))().then(
    result => report({event: 'reply', id, result: result ?? null}),
    error => report({event: 'reply', id, error: String(error?.message ?? error)}),
  );
}
await browser.close();
