// The page: signs in, gets all nodes once, follows what changes, and shows it as a map, a list or slots.

import { Connection, Refused } from './connection.js';
import { Detail } from './detail.js';
import { byId, el, number } from './dom.js';
import { List } from './list.js';
import { HeatMap } from './map.js';
import { Model, isSelector } from './model.js';
import { Slots } from './slots.js';

const DATA = '/cloudhub/fleet/';
const SILENT_MS = 35000; // the hub says that it is there every 10 s
const RETRY_MS = [500, 15000]; // the pause before the next try: the shortest, and the longest
const DETAIL_MS = 5000;
const LABELLED_MAX = 5000;
const META_ONLY = 'application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1';
const VIEWS = ['map', 'list', 'slots'];

const connection = new Connection();
const page = {
  model: null,
  view: 'map',
  grouping: '',
  hidden: new Set(), // states whose nodes are not shown
  labelled: null,
  seesSlots: true,
  problem: '',
};

const map = new HeatMap(openNode);
const list = new List(openNode);
const slots = new Slots((text) => {
  byId('search').value = text;
  choose('map');
  search();
});
const detail = new Detail(() => {
  history.replaceState(null, '', location.pathname);
  (page.view === 'map' ? byId('map') : byId(`${page.view}-tab`)).focus();
  map.layout();
});

// -- what is shown -----------------------------------------------------------------------------------------------------

function shown() {
  const { model, hidden } = page;
  const found = model.search(byId('search').value, page.labelled);
  if (!hidden.size) return found;
  return (at) => !hidden.has(model.state[at]) && (!found || found(at));
}

// Everything; `isWhole` false: only what does not depend on which nodes there are and where.
function draw(isWhole = true) {
  const { model, view } = page;
  if (!model) return;
  const test = shown();
  legend();
  total(test);
  if (view === 'map' && isWhole) map.show(model, page.grouping, test);
  if (view === 'list') list.show(model, test);
  if (view === 'slots') slots.show(model.owners, page.seesSlots);
}

function legend() {
  const { model } = page;
  const items = model.states.map((name, state) => {
    const count = model.counts[state];
    const share = model.length ? (100 * count) / model.length : 0;
    const percent = share > 0 && share < 0.1 ? '<0.1' : share.toFixed(share > 0 && share < 10 ? 1 : 0);
    const press = () => {
      if (!page.hidden.delete(state)) page.hidden.add(state);
      draw();
      byId('legend').querySelector(`[data-state="${name}"]`).focus();
    };
    return el('li', {}, el('button', {
      type: 'button', click: press, 'data-state': name, 'data-count': count, 'aria-pressed': !page.hidden.has(state) ? 'true' : 'false', class: count ? '' : 'zero',
    }, el('i', { class: `swatch s${state}` }), el('span', {}, name), el('b', {}, number(count)), el('small', {}, `${percent}%`)));
  });
  const focused = document.activeElement?.closest?.('#legend button')?.dataset.state;
  byId('legend').replaceChildren(...items);
  if (focused) byId('legend').querySelector(`[data-state="${focused}"]`)?.focus();
}

function total(test) {
  const { model } = page;
  byId('total').textContent = `${number(model.length)} nodes`;
  let count = model.length;
  if (test) {
    count = 0;
    for (let at = 0; at < model.length; at += 1) if (test(at)) count += 1;
  }
  const isSearching = byId('search').value.trim() !== '';
  byId('found').textContent = isSearching ? `${number(count)} found` : '';
  byId('found').dataset.count = String(count);
  const states = model.states.map((name, state) => `${number(model.counts[state])} ${name}`).filter((text) => !text.startsWith('0 '));
  const text = `${number(model.length)} nodes: ${states.join(', ') || 'none'}.`;
  byId('map-text').textContent = text;
  byId('map').setAttribute('aria-label', text);
  document.title = `${troubled(model)}Fleet · CloudHub`;
  const parts = [];
  if (model.omitted) parts.push(`${number(model.omitted)} more nodes are not shown: the page takes ${number(model.length)}.`);
  if (page.problem) parts.push(page.problem);
  byId('notice').textContent = parts.join(' ');
  byId('notice').hidden = !parts.length;
}

function troubled(model) {
  const count = model.counts.slice(model.states.indexOf('Unknown')).reduce((sum, one) => sum + one, 0);
  return count ? `(${number(count)}) ` : '';
}

function choose(view) {
  page.view = view;
  for (const name of VIEWS) {
    byId(`${name}-view`).hidden = name !== view;
    byId(`${name}-tab`).setAttribute('aria-pressed', String(name === view));
  }
  draw();
}

// What changed, for who hears the page: at most a sentence a second.
let told = 0;
function tell(changed) {
  const { model } = page;
  const [name] = changed;
  const at = model.place.get(name);
  if (at === undefined || Date.now() - told < 1000) return;
  told = Date.now();
  const text = changed.length === 1
    ? `${name} is ${model.states[model.state[at]]}`
    : `${number(changed.length)} nodes have changed`;
  byId('changes').replaceChildren(el('p', {}, text));
}

// -- search ------------------------------------------------------------------------------------------------------------

let searching = 0;
async function search() {
  const text = byId('search').value.trim();
  searching += 1;
  const mine = searching;
  page.labelled = null;
  page.problem = '';
  if (isSelector(text)) {
    byId('found').textContent = 'asking the hub …';
    const { names, problem } = await labelled(text, () => mine !== searching);
    if (mine !== searching) return;
    page.labelled = names;
    page.problem = problem;
  }
  list.first = 0;
  draw();
}

// The names that a label selector finds: the hub has the labels.
async function labelled(selector, isOver) {
  const names = new Set();
  let more = '';
  try {
    do {
      const query = new URLSearchParams({ labelSelector: selector, limit: '500', ...(more && { continue: more }) });
      const found = await connection.get(`/api/v1/nodes?${query}`, { Accept: META_ONLY });
      for (const item of found.items) names.add(item.metadata.name);
      more = found.metadata.continue ?? '';
    } while (more && names.size < LABELLED_MAX && !isOver());
    return { names, problem: more ? `The first ${number(names.size)} nodes with ${selector} are shown.` : '' };
  } catch (failure) {
    return { names, problem: `Labels cannot be searched: ${failure.message}` };
  }
}

let typing = 0;
byId('search').addEventListener('input', () => {
  clearTimeout(typing);
  typing = setTimeout(search, 120);
});
byId('search').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || !page.model) return;
  clearTimeout(typing);
  search().then(() => {
    const test = shown();
    const first = page.model.names.find((_, at) => !test || test(at));
    if (byId('search').value.trim() && first !== undefined) openNode(first);
  });
});

// -- one node ----------------------------------------------------------------------------------------------------------

function openNode(name) {
  const wasOpen = detail.isOpen;
  detail.begin(name);
  history.replaceState(null, '', `#${encodeURIComponent(name)}`);
  if (!wasOpen) map.layout();
  return ask(name);
}

async function ask(name) {
  try {
    detail.show(await connection.get(`${DATA}node?name=${encodeURIComponent(name)}`));
  } catch (failure) {
    detail.fail(name, failure.message);
  }
}

setInterval(() => {
  if (detail.isOpen && !document.hidden) ask(detail.name);
}, DETAIL_MS);

// -- following the fleet -----------------------------------------------------------------------------------------------

function link(state, text) {
  byId('link').dataset.state = state;
  byId('link').textContent = text;
}

async function load() {
  const before = page.model;
  page.model = new Model(await connection.get(`${DATA}nodes`));
  page.model.owners = before?.owners ?? null;
  draw();
  if (detail.isOpen) ask(detail.name);
}

function take(line) {
  const { model } = page;
  if (line.type === 'hello') {
    page.seesSlots = line.slots;
    byId('link').title = `signed in as ${line.user}`;
    link('live', 'live');
    if (page.view === 'slots') draw(false);
  } else if (line.type === 'slots') {
    model.owners = line;
    draw(page.grouping === 'owner');
  } else if (line.type === 'nodes') {
    const { changed, others } = model.apply(line);
    draw(others || (page.grouping === 'state' && changed.length > 0));
    if (page.view === 'map' && changed.length) map.changed(changed);
    tell(changed);
    const name = detail.name;
    if (detail.isOpen && (line.set.some(([set]) => set === name) || line.gone.includes(name))) ask(name);
  }
}

// Until the stream ends; true: the nodes have to be asked for anew.
async function follow() {
  const ending = new AbortController();
  let heard = Date.now();
  let isReset = false;
  const watch = setInterval(() => {
    if (Date.now() - heard > SILENT_MS) ending.abort();
  }, 1000);
  try {
    await connection.lines(`${DATA}changes?revision=${page.model.revision}`, (line) => {
      heard = Date.now();
      if (line.type === 'reset') isReset = true;
      else take(line);
    }, ending.signal);
  } finally {
    clearInterval(watch);
  }
  return isReset;
}

async function live() {
  let pause = RETRY_MS[0];
  for (;;) {
    const began = Date.now();
    try {
      if (!page.model) await load();
      if (await follow()) await load();
    } catch (failure) {
      if (failure instanceof Refused && (failure.status === 401 || failure.status === 403)) {
        await signIn(failure);
        continue;
      }
      link('away', `no connection, trying again · ${failure.message}`);
    }
    // The hub ends a stream in order from time to time; one that ends at once is asked for less and less often.
    if (Date.now() - began > RETRY_MS[1]) pause = RETRY_MS[0];
    await new Promise((done) => { setTimeout(done, pause * (0.75 + Math.random() / 2)); });
    pause = Math.min(pause * 2, RETRY_MS[1]);
  }
}

// -- signing in --------------------------------------------------------------------------------------------------------

function signIn(refused) {
  link('out', 'not signed in');
  const dialog = byId('sign-in');
  const why = refused.status === 403
    ? `You may not see the fleet: ${refused.message}. The role cloudhub:fleet-viewer gives the right.`
    : connection.hasToken ? `The token was refused: ${refused.message}.` : 'The hub does not know who you are.';
  byId('sign-in-why').textContent = why;
  if (refused.status === 401) connection.signOut();
  if (!dialog.open) dialog.showModal();
  byId('token').focus();
  return new Promise((done) => {
    byId('sign-in-form').onsubmit = (event) => {
      event.preventDefault();
      connection.signIn(byId('token').value);
      byId('token').value = '';
      dialog.close();
      link('connecting', 'connecting');
      done();
    };
    dialog.oncancel = (event) => event.preventDefault();
  });
}

// -- settings ----------------------------------------------------------------------------------------------------------

for (const view of VIEWS) byId(`${view}-tab`).addEventListener('click', () => choose(view));
byId('group').addEventListener('change', (event) => {
  page.grouping = event.target.value;
  draw();
});
const dark = matchMedia('(prefers-color-scheme: dark)');
function theme(isDark) {
  document.documentElement.dataset.theme = isDark ? 'dark' : 'light';
  draw();
}
byId('theme').addEventListener('click', () => theme(document.documentElement.dataset.theme === 'light'));
dark.addEventListener('change', () => theme(dark.matches));
theme(dark.matches);
document.addEventListener('keydown', (event) => {
  if (event.key === '/' && !/^(INPUT|SELECT)$/.test(document.activeElement.tagName)) {
    byId('search').focus();
    event.preventDefault();
  }
});

live();
if (location.hash.length > 1) openNode(decodeURIComponent(location.hash.slice(1)));
