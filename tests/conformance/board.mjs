// A board: the MicroPython VM (WebAssembly under Node) with the package for boards as its code, Node's TLS as its network, and a
// directory of this machine as its flash.
//
//   node board.mjs <folder with node_modules> <folder with edgelite/*.mpy> <board_vm.py> <directory> [check <stride> | cuts <cuts> <seed>]
//
// The VM is one thread that waits, as a board's is: `bridge.wait` blocks it until the network has something. What reaches the
// flash is what was synced: `bridge.persist` copies the VM's files out, and to end this process is to cut the power.
import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { MessageChannel, Worker, receiveMessageOnPort } from 'node:worker_threads';

const [installed, code, program, flash, ...job] = process.argv.slice(2);
const CONNECT_MS = 15000;
const vm = path.join(installed, 'node_modules/@micropython/micropython-webassembly-pyscript/micropython.mjs');
const { loadMicroPython } = await import(pathToFileURL(vm).href);
const mp = await loadMicroPython({ heapsize: 16 * 1024 * 1024, linebuffer: true, stdout: say });

const signal = new Int32Array(new SharedArrayBuffer(4));
const { port1: near, port2: far } = new MessageChannel();
if (job.length === 0) {
  const worker = new Worker(new URL('./tls_worker.mjs', import.meta.url), {
    workerData: { port: far, signal }, transferList: [far],
  });
  await new Promise((ready) => worker.once('online', ready));
}
let connection = 0;
let waiting = [];
let state = 'end';
let trouble = '';
let done = false;

function say(line) {
  fs.writeSync(1, line + '\n');
}

function take() {
  for (let found = receiveMessageOnPort(near); found; found = receiveMessageOnPort(near)) {
    const { kind, of, text } = found.message;
    if (of !== connection) continue;
    if (kind === 'data') waiting.push(text);
    else if (kind === 'error') trouble = text;
    else state = kind;
  }
}

// Until `done` says so, at most `ms`.
function until(done, ms) {
  const end = Date.now() + ms;
  for (;;) {
    const seen = Atomics.load(signal, 0);
    take();
    const left = end - Date.now();
    if (done() || left <= 0) return;
    Atomics.wait(signal, 0, seen, left);
  }
}

mp.registerJsModule('bridge', {
  connect(host, at, name, ca, identity) {
    connection += 1;
    waiting = [];
    state = 'connecting';
    trouble = '';
    near.postMessage({ kind: 'connect', of: connection, host, at, name, ca, identity });
    until(() => state !== 'connecting', CONNECT_MS);
    return state === 'open' ? '' : trouble || 'no answer';
  },
  // Hexadecimal; '' where nothing has come, '-' at the end.
  read() {
    take();
    return waiting.length > 0 ? waiting.shift() : state === 'open' ? '' : '-';
  },
  wait(ms) {
    until(() => waiting.length > 0 || state !== 'open', ms);
  },
  write(text) {
    near.postMessage({ kind: 'write', of: connection, text });
  },
  close() {
    near.postMessage({ kind: 'close', of: connection });
  },
  sleep(ms) {
    if (ms > 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
  },
  done() {
    done = true;
  },
  entropy: (size) => crypto.randomBytes(size).toString('hex'),
  persist() {
    const names = mp.FS.readdir('/node').filter((name) => name.startsWith('journal'));
    for (const name of names) {
      const made = path.join(flash, name);
      fs.writeFileSync(made + '.part', mp.FS.readFile('/node/' + name));
      fs.renameSync(made + '.part', made);
    }
    for (const name of fs.readdirSync(flash)) {
      if (name.startsWith('journal') && !names.includes(name)) fs.rmSync(path.join(flash, name));
    }
  },
});

mp.FS.mkdir('/board');
mp.FS.mkdir('/board/edgelite');
for (const name of fs.readdirSync(path.join(code, 'edgelite'))) {
  if (name.endsWith('.mpy')) {
    mp.FS.writeFile('/board/edgelite/' + name, fs.readFileSync(path.join(code, 'edgelite', name)));
  }
}
mp.FS.writeFile('/board/main.py', fs.readFileSync(program));
for (const file of ['everycut.py', '../edgelite/powercuts.py']) {
  mp.FS.writeFile('/board/' + path.basename(file), fs.readFileSync(path.join(path.dirname(program), file)));
}
mp.FS.mkdir('/node');
for (const name of fs.existsSync(flash) ? fs.readdirSync(flash) : []) {
  if (fs.statSync(path.join(flash, name)).isFile()) {
    mp.FS.writeFile('/node/' + name, fs.readFileSync(path.join(flash, name)));
  }
}
mp.runPython(`
import sys
sys.path.insert(0, '/board')
import main
main.begin(*${JSON.stringify(job)})
`);
while (!done) mp.runPython('main.step()');
process.exit(0);
