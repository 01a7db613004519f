// One node: what it is, its connection, its documents, and what has happened to it.

import { ago, byId, bytes, duration, el, table } from './dom.js';

const STANDING = {
  held: 'on the node', sending: 'being sent', waiting: 'waits', refused: 'refused', unknown: 'not compared yet', away: 'node is away',
};
const GOOD_WHEN_TRUE = ['Ready'];

export class Detail {
  constructor(closed) {
    this.closed = closed;
    this.view = byId('detail');
    this.name = null;
    this.view.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') this.close();
    });
  }

  get isOpen() {
    return !this.view.hidden;
  }

  begin(name) {
    this.name = name;
    this.view.hidden = false;
    this.view.replaceChildren(this.head(name, null), el('p', { class: 'empty' }, 'Asking the hub …'));
    this.view.focus();
  }

  fail(name, message) {
    if (name === this.name) this.view.replaceChildren(this.head(name, null), el('p', { class: 'empty bad' }, message));
  }

  close() {
    this.name = null;
    this.view.hidden = true;
    this.view.replaceChildren();
    this.closed();
  }

  head(name, state) {
    return el('div', { class: 'head' },
      el('h2', {}, name),
      state === null ? null : el('span', { class: `state ${state}` }, state),
      el('button', { type: 'button', class: 'close', 'aria-label': 'Close', click: () => this.close() }, '×'));
  }

  show(node) {
    if (node.name !== this.name) return;
    const top = this.view.scrollTop;
    this.view.replaceChildren(
      this.head(node.name, node.state),
      facts([
        ['Slot', node.slot === null ? 'none' : `${node.slot}, epoch ${node.epoch ?? '–'}`],
        ['Owner', node.owner ?? 'nobody'],
        ['Machine', [node.nodeInfo?.operatingSystem, node.nodeInfo?.architecture, node.nodeInfo?.osImage].filter(Boolean).join(' · ')],
        ['Agent', node.nodeInfo?.kubeletVersion],
        ['Addresses', (node.addresses ?? []).map((address) => address.address).join(', ')],
        ['Capacity', Object.entries(node.capacity ?? {}).map(([what, much]) => `${what} ${much}`).join(', ')],
        ['Made', node.created && ago(node.created)],
        ['Takes new pods', node.unschedulable ? 'no: cordoned' : 'yes'],
        ['Taints', node.taints.map((taint) => `${taint.key}:${taint.effect}`).join(', ')],
      ]),
      section('Session', ...session(node)),
      section('Conditions', conditions(node.conditions ?? [])),
      section(`Documents${node.documents ? ` (${node.documentsInAll})` : ''}`, ...documents(node)),
      section('History', ...history(node)),
      section('Labels', labels(node.labels)));
    this.view.scrollTop = top;
  }
}

function facts(pairs) {
  const known = pairs.filter(([, value]) => value);
  return el('dl', {}, ...known.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));
}

function section(title, ...children) {
  return el('section', {}, el('h3', {}, title), ...children);
}

function nothing(text) {
  return el('p', { class: 'empty' }, text);
}

function session(node) {
  if (node.unknown) return [nothing(node.unknown)];
  const held = node.session;
  if (!held) return [nothing('Not connected.')];
  const ends = held.certificate.endsS;
  return [facts([
    ['State', held.state],
    ['Connected for', held.connectedS === null ? 'relayed: the other replica knows' : duration(held.connectedS)],
    ['From', held.address],
    ['Last heard', `${duration(held.heardS)} ago; heartbeats every ${duration(held.heartbeatS)}`],
    ['Open streams', String(held.streams)],
    ['Unsent', held.backlogBytes ? bytes(held.backlogBytes) : ''],
    ['Agent knows', held.features.join(', ')],
    ['Journal', held.incarnation.slice(0, 8)],
    ['Certificate', held.certificate.serial && `${held.certificate.serial.slice(0, 16)}${ends === null ? '' : `, ends in ${duration(ends)}`}`],
  ])];
}

function conditions(all) {
  if (!all.length) return nothing('None: it has never been connected.');
  return table('Conditions', ['Condition', 'Status', 'Since', 'Why'], all.map((condition) => {
    const isGood = (condition.status === 'True') === GOOD_WHEN_TRUE.includes(condition.type);
    return el('tr', { class: isGood ? '' : 'bad' },
      el('th', { scope: 'row' }, condition.type), el('td', {}, condition.status),
      el('td', { class: 'short' }, ago(condition.lastTransitionTime ?? '')),
      el('td', {}, [condition.reason, condition.message].filter(Boolean).join(': ')));
  }));
}

function documents(node) {
  if (!node.documents) return [nothing('The replica that serves this node tells them.')];
  const rows = node.documents.map((document) => {
    const [kind, ...rest] = document.key.split('/');
    const name = kind === 'pod' ? rest.slice(0, 2).join('/') : rest.join('/');
    const why = document.why || [bytes(document.bytes), document.version.slice(0, 8)].join(' · ');
    return el('tr', { class: document.standing === 'refused' ? 'bad' : '' },
      el('td', {}, kind), el('th', { scope: 'row' }, name), el('td', {}, STANDING[document.standing] ?? document.standing),
      el('td', {}, document.phase), el('td', {}, why));
  });
  const parts = [rows.length ? table('Documents', ['Kind', 'Name', 'Where', 'Phase', ''], rows) : nothing('None to show.')];
  if (node.documentsHidden) parts.push(nothing(`${node.documentsHidden} more are of objects that you may not list.`));
  const beyond = node.documentsInAll - node.documents.length - (node.documentsHidden ?? 0);
  if (beyond > 0) parts.push(nothing(`${beyond} more are not shown.`));
  return parts;
}

function history(node) {
  const happened = (node.connections ?? []).map((entry) => ({
    at: entry.at * 1000, what: entry.ended ? `disconnected: ${entry.ended}` : 'connected', bad: Boolean(entry.ended),
  }));
  for (const event of node.events ?? []) {
    const times = event.count > 1 ? ` (${event.count} times)` : '';
    happened.push({
      at: Date.parse(event.lastTimestamp ?? event.firstTimestamp ?? ''), what: `${event.reason}: ${event.message}${times}`, bad: event.type === 'Warning',
    });
  }
  for (const condition of node.conditions ?? []) {
    happened.push({ at: Date.parse(condition.lastTransitionTime ?? ''), what: `${condition.type} became ${condition.status}: ${condition.reason ?? ''}`, bad: false });
  }
  happened.sort((a, b) => (b.at || 0) - (a.at || 0));
  const parts = [el('ol', { class: 'history' }, ...happened.map(({ at, what, bad }) =>
    el('li', { class: bad ? 'bad' : '' },
      el('time', Number.isNaN(at) ? {} : { datetime: new Date(at).toISOString() }, Number.isNaN(at) ? '' : ago(at / 1000)), ' ', what)))];
  if (!happened.length) parts[0] = nothing('Nothing is known.');
  if (node.eventsHidden) parts.push(nothing(node.eventsHidden));
  return parts;
}

function labels(all) {
  const pairs = Object.entries(all);
  if (!pairs.length) return nothing('None.');
  return el('ul', { class: 'labels' }, ...pairs.map(([name, value]) => el('li', {}, `${name}=${value}`)));
}
