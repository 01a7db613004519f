// Runs test modules in the MicroPython VM (WebAssembly under Node).
//
//   node run.mjs <folder with node_modules> <repository> <module> [<module> ...]
//
// Copies edgelite/ and tests/ into the VM's file system, runs vm_runner.py there and prints what it prints: one JSON
// line per test.
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [installed, repository, ...modules] = process.argv.slice(2);
const vm = path.join(installed, 'node_modules/@micropython/micropython-webassembly-pyscript/micropython.mjs');
const { loadMicroPython } = await import(pathToFileURL(vm).href);
const mp = await loadMicroPython({
  heapsize: 128 * 1024 * 1024,
  linebuffer: true,
  stdout: (line) => process.stdout.write(line + '\n'),
});

function copy(folder) {
  mp.FS.mkdir('/repo/' + folder);
  for (const entry of fs.readdirSync(path.join(repository, folder), { withFileTypes: true })) {
    const name = folder + '/' + entry.name;
    if (entry.isDirectory() && entry.name !== '__pycache__') copy(name);
    else if (/\.m?py$/.test(entry.name)) mp.FS.writeFile('/repo/' + name, fs.readFileSync(path.join(repository, name)));
  }
}
mp.FS.mkdir('/repo');
copy('edgelite');
mp.FS.mkdir('/repo/tests');
mp.FS.writeFile('/repo/tests/__init__.py', '');
copy('tests/edgelite');
mp.FS.writeFile('/repo/vm_runner.py', fs.readFileSync(new URL('./vm_runner.py', import.meta.url)));
mp.runPython(`
import sys
sys.path.insert(0, '/repo')
import vm_runner
vm_runner.run(${JSON.stringify(modules)})
`);
