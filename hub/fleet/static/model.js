// All nodes as columns in the order of their names, kept up to date; who owns which slot; and what a search means.

export const READY = 0;

export class Model {
  constructor(snapshot) {
    this.revision = snapshot.revision;
    this.states = snapshot.states;
    this.slots = snapshot.slots;
    this.omitted = snapshot.omitted;
    this.names = snapshot.names;
    const count = this.names.length;
    this.state = Uint8Array.from(snapshot.state, Number);
    this.slot = Int32Array.from(snapshot.slot);
    this.site = column(snapshot.sites, snapshot.site, count);
    this.pool = column(snapshot.pools, snapshot.pool, count);
    this.owners = null;
    this.count();
  }

  count() {
    this.counts = new Array(this.states.length).fill(0);
    for (const state of this.state) this.counts[state] += 1;
    this.place = new Map(this.names.map((name, at) => [name, at]));
  }

  get length() {
    return this.names.length;
  }

  owner(at) {
    const owners = this.owners;
    const place = owners?.owner[this.slot[at]];
    if (place === undefined) return '';
    return place < 0 ? 'nobody' : owners.members[place].name;
  }

  // Takes a line of changes; returns the names of nodes that are in another state than before, and whether there are others now.
  apply(line) {
    this.revision = line.revision;
    const changed = [];
    const added = [];
    for (const [name, state, slot, site, pool] of line.set) {
      const at = this.place.get(name);
      if (at === undefined) {
        added.push({ name, state, slot, site, pool });
        continue;
      }
      if (this.state[at] !== state) {
        this.counts[this.state[at]] -= 1;
        this.counts[state] += 1;
        changed.push(name);
        this.state[at] = state;
      }
      this.slot[at] = slot;
      this.site[at] = site;
      this.pool[at] = pool;
    }
    const gone = new Set(line.gone.filter((name) => this.place.has(name)));
    if (added.length || gone.size) this.rebuild(added, gone);
    return { changed, others: added.length > 0 || gone.size > 0 };
  }

  rebuild(added, gone) {
    const rows = added;
    this.names.forEach((name, at) => {
      if (gone.has(name)) return;
      rows.push({ name, state: this.state[at], slot: this.slot[at], site: this.site[at], pool: this.pool[at] });
    });
    rows.sort((a, b) => (a.name < b.name ? -1 : 1));
    this.names = rows.map((row) => row.name);
    this.state = Uint8Array.from(rows, (row) => row.state);
    this.slot = Int32Array.from(rows, (row) => row.slot);
    this.site = rows.map((row) => row.site);
    this.pool = rows.map((row) => row.pool);
    this.count();
  }

  // What a group is called, for each way to group.
  group(by, at) {
    switch (by) {
      case 'site': return this.site[at] || 'no site';
      case 'pool': return this.pool[at] || 'no pool';
      case 'slot': return this.slot[at] < 0 ? 'no slot' : `slot ${String(this.slot[at]).padStart(4, '0')}`;
      case 'owner': return this.owner(at) || 'unknown';
      case 'state': return this.states[this.state[at]];
      default: return '';
    }
  }

  // Places of all nodes, in groups: [{name, nodes}], by name; states by their number.
  groups(by) {
    const found = new Map();
    for (let at = 0; at < this.length; at += 1) {
      const name = this.group(by, at);
      const nodes = found.get(name);
      if (nodes) nodes.push(at);
      else found.set(name, [at]);
    }
    const groups = [...found].map(([name, nodes]) => ({ name, nodes }));
    const rank = (group) => (by === 'state' ? this.states.indexOf(group.name) : 0);
    return groups.sort((a, b) => rank(b) - rank(a) || (a.name < b.name ? -1 : 1));
  }

  // A test of places for what somebody has typed; null: everything. Words are all wanted; `labelled`: names that a label
  // selector has found.
  search(text, labelled) {
    if (labelled) return (at) => labelled.has(this.names[at]);
    const words = text.trim().split(/\s+/).filter(Boolean).map((word) => this.word(word));
    if (!words.length) return null;
    return (at) => words.every((word) => word(at));
  }

  word(word) {
    const [, field, value] = /^(site|pool|slot|owner|state):(.*)$/.exec(word) ?? [];
    const wanted = (value ?? word).toLowerCase();
    switch (field) {
      case 'site': return (at) => this.site[at].toLowerCase() === wanted;
      case 'pool': return (at) => this.pool[at].toLowerCase() === wanted;
      case 'slot': return (at) => this.slot[at] === Number(wanted);
      case 'owner': return (at) => this.owner(at).toLowerCase() === wanted;
      case 'state': return (at) => this.states[this.state[at]].toLowerCase().startsWith(wanted);
      default: return (at) => this.names[at].includes(wanted);
    }
  }
}

// Is this a label selector, and no word of a name?
export function isSelector(text) {
  return /[=!()]/.test(text);
}

function column(values, places, count) {
  return values.length ? places.map((place) => values[place]) : new Array(count).fill('');
}
