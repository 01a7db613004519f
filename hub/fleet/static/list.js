// The list: the map's nodes as text, those that need somebody first, a page at a time.

import { byId, el, number, table } from './dom.js';

const PAGE = 100;

export class List {
  constructor(open) {
    this.open = open;
    this.view = byId('list-view');
    this.first = 0;
  }

  show(model, shown) {
    const found = [];
    for (let at = 0; at < model.length; at += 1) if (!shown || shown(at)) found.push(at);
    found.sort((a, b) => model.state[b] - model.state[a] || a - b);
    this.first = Math.min(this.first, Math.max(0, Math.floor((found.length - 1) / PAGE) * PAGE));
    const rows = found.slice(this.first, this.first + PAGE).map((at) => this.row(model, at));
    const last = this.first + rows.length;
    const turn = (by) => () => {
      this.first += by;
      this.show(model, shown);
      this.view.scrollTo(0, 0);
    };
    const pager = el('p', { class: 'pager' },
      el('button', { type: 'button', disabled: this.first === 0, click: turn(-PAGE) }, 'Previous'),
      found.length ? `${number(this.first + 1)} to ${number(last)} of ${number(found.length)}` : 'No node matches.',
      el('button', { type: 'button', disabled: last >= found.length, click: turn(PAGE) }, 'Next'));
    const focused = document.activeElement?.dataset?.node;
    this.view.replaceChildren(pager, table('Nodes', ['Node', 'State', 'Site', 'Pool', 'Slot', 'Replica'], rows));
    if (focused) this.view.querySelector(`button[data-node="${CSS.escape(focused)}"]`)?.focus();
  }

  row(model, at) {
    const name = model.names[at];
    const state = model.state[at];
    return el('tr', {},
      el('th', { scope: 'row' }, el('button', { type: 'button', class: 'name', 'data-node': name, click: () => this.open(name) }, name)),
      el('td', {}, el('span', { class: `state s${state}` }, model.states[state])),
      el('td', {}, model.site[at]),
      el('td', {}, model.pool[at]),
      el('td', {}, model.slot[at] < 0 ? '' : model.slot[at]),
      el('td', {}, model.owner(at)));
  }
}
