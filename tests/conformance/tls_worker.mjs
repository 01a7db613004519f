// The network of a board's VM: one TLS connection at a time, on a thread of its own, so that the VM may wait for it. See board.mjs.
import tls from 'node:tls';
import { workerData } from 'node:worker_threads';

const { port, signal } = workerData;
let socket = null;
let number = 0;

function tell(kind, of, text) {
  port.postMessage({ kind, of, text });
  Atomics.add(signal, 0, 1);
  Atomics.notify(signal, 0);
}

function connect({ of, host, at, name, ca, identity }) {
  const mine = (socket = tls.connect({
    host, port: at, servername: name, ca, cert: identity, key: identity,
    minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2', // what boards have
  }));
  number = of;
  mine.on('secureConnect', () => tell('open', of, ''));
  mine.on('data', (data) => tell('data', of, data.toString('hex')));
  mine.on('error', (error) => tell('error', of, String(error.message)));
  mine.on('close', () => tell('end', of, ''));
}

port.on('message', (message) => {
  if (message.kind === 'connect') connect(message);
  else if (socket === null || message.of !== number) return;
  else if (message.kind === 'write') socket.write(Buffer.from(message.text, 'hex'));
  else if (message.kind === 'close') socket.end();
});
