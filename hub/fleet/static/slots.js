// Slots and their owners: the replicas as a table, and every slot as a cell.

import { byId, duration, el, number, table } from './dom.js';

export class Slots {
  // `search`: called with what to look for when somebody presses a slot or a replica.
  constructor(search) {
    this.search = search;
    this.view = byId('slots-view');
    this.cells = [];
  }

  show(owners, isAllowed) {
    if (!isAllowed || !owners) {
      const why = isAllowed ? 'Owners are being read.' : 'Slots and owners are for who may get /cloudhub/status; you may not.';
      this.view.replaceChildren(el('p', { class: 'empty' }, why));
      this.cells = [];
      return;
    }
    const { members, store } = owners;
    const unowned = owners.owner.filter((place) => place === -1).length;
    const facts = [
      `${number(store.slots)} slots`,
      unowned ? `${number(unowned)} without an owner` : 'all owned',
      `answered by ${owners.answeredBy.member}`,
      `store ${store.uuid.slice(0, 8)}, generation ${store.generation}`,
    ];
    const heads = ['Replica', 'State', 'Slots', 'Nodes', 'Connected', 'Relayed', 'Roles', 'Version', 'Edge address', 'Up for'];
    if (this.cells.length !== owners.owner.length) this.build(owners.owner.length);
    this.fill(owners);
    this.view.replaceChildren(
      el('p', { class: unowned || owners.answeredBy.stale ? 'facts bad' : 'facts' },
        facts.join(' · ') + (owners.answeredBy.stale ? ' · stale: this replica has lost touch with the store' : '')),
      table('Replicas', heads, members.map((member, place) => this.member(member, place))),
      el('p', { class: 'facts' }, owners.roles.map((role) => `${role.role}: ${role.owner ?? 'nobody'}`).join(' · ')),
      this.mosaic);
  }

  member(member, place) {
    const cells = [
      member.state, number(member.slots), number(member.nodes), number(member.connected),
      member.relayedHere || member.relayedAway ? `${member.relayedHere} here, ${member.relayedAway} away` : '–',
      member.roles.join(', ') || '–', member.version, member.edge || '–', duration(member.ageSeconds),
    ];
    const press = () => this.search(`owner:${member.name}`);
    return el('tr', { class: member.state === 'Ready' ? '' : 'bad' },
      el('th', { scope: 'row' }, el('i', { class: `swatch o${place % 8}` }),
        el('button', { type: 'button', class: 'name', click: press }, member.name)),
      ...cells.map((cell) => el('td', {}, cell)));
  }

  build(count) {
    this.cells = Array.from({ length: count }, (_, slot) =>
      el('button', { type: 'button', tabindex: slot ? -1 : 0, click: () => this.search(`slot:${slot}`) }));
    this.mosaic = el('div', { class: 'mosaic', role: 'group', 'aria-label': 'Slots', keydown: (event) => this.key(event) }, ...this.cells);
  }

  fill(owners) {
    this.cells.forEach((cell, slot) => {
      const place = owners.owner[slot];
      const name = place >= 0 ? owners.members[place].name : place === -1 ? 'nobody' : 'a replica that is gone';
      const nodes = owners.nodes[slot];
      const away = nodes - owners.connected[slot];
      cell.className = place < 0 ? 'none' : `o${place % 8}${away > 0 ? ' away' : ''}`;
      const text = `slot ${slot}: ${name}, epoch ${owners.epoch[slot]}, ${nodes} nodes, ${owners.connected[slot]} connected`;
      if (cell.title !== text) {
        cell.title = text;
        cell.setAttribute('aria-label', text);
      }
    });
  }

  // One stop for Tab; arrows go on from there.
  key(event) {
    const columns = getComputedStyle(this.mosaic).gridTemplateColumns.split(' ').length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const from = this.cells.indexOf(event.target);
    if (!step || from < 0) return;
    const to = this.cells[Math.max(0, Math.min(this.cells.length - 1, from + step))];
    event.target.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
    event.preventDefault();
  }
}
