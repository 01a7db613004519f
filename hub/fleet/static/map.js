// The map: a cell for every node on one screen, as large as there is room for.

import { byId, el, number } from './dom.js';
import { READY } from './model.js';

const CELL_MAX = 76;
const NAMED = 56; // cells from this size on have their names in them
const ASPECTS = [1, 1.6, 2.5, 4, 8]; // of blocks: the first that fits
const HEADED_MAX = 60; // groups that get a name and a block of their own; more of them follow one another
const HEAD = 18;
const BETWEEN = 14;
const PULSE_MS = 1600;
const PULSES_MAX = 300; // more at once are no event of a node: the colours show it

export class HeatMap {
  // `open`: called with the name of the node that somebody has chosen.
  constructor(open) {
    this.open = open;
    this.frame = byId('map-frame');
    this.canvas = byId('map');
    this.marks = byId('marks');
    this.tip = byId('tip');
    this.names = byId('group-names');
    this.model = null;
    this.grouping = '';
    this.shown = null;
    this.blocks = [];
    this.order = [];
    this.cursor = -1;
    this.hover = -1;
    this.pulses = [];
    this.isMoving = false;
    this.canvas.addEventListener('pointermove', (event) => this.pointed(event));
    this.canvas.addEventListener('pointerleave', () => this.point(-1));
    this.canvas.addEventListener('click', (event) => this.clicked(event));
    this.canvas.addEventListener('keydown', (event) => this.key(event));
    this.canvas.addEventListener('blur', () => this.point(-1));
    this.canvas.locate = (name) => this.locate(name);
    new ResizeObserver(() => this.layout()).observe(this.frame);
  }

  show(model, grouping, shown) {
    const chosen = this.model?.names[this.order[this.cursor]];
    this.model = model;
    this.grouping = grouping;
    this.shown = shown;
    this.layout();
    this.cursor = chosen === undefined ? -1 : this.order.indexOf(model.place.get(chosen));
  }

  // -- where every cell lies -----------------------------------------------------------------------------------------

  layout() {
    const model = this.model;
    const scale = window.devicePixelRatio || 1;
    const width = Math.floor(this.frame.clientWidth * scale);
    const height = Math.floor(this.frame.clientHeight * scale);
    if (!model || width < 10 || height < 10) return;
    for (const canvas of [this.canvas, this.marks]) {
      if (canvas.width !== width || canvas.height !== height) {
        canvas.width = width;
        canvas.height = height;
      }
    }
    this.scale = scale;
    let groups = model.groups(this.grouping);
    this.isHeaded = this.grouping !== '' && groups.length <= HEADED_MAX;
    if (!this.isHeaded) groups = [{ name: '', nodes: groups.flatMap((group) => group.nodes) }];
    for (let cell = Math.floor(CELL_MAX * scale); cell >= 1; cell -= 1) {
      this.cell = cell;
      const ways = this.isHeaded
        ? ASPECTS.map((aspect) => this.shelves(groups, cell, width, aspect)) : [[whole(groups[0], cell, width)]];
      const fitting = ways.find((blocks) => blocks.every((block) => block.y + block.rows * cell <= height));
      this.blocks = fitting ?? ways.at(-1);
      if (fitting) break;
    }
    this.order = this.blocks.flatMap((block) => block.nodes);
    this.x = new Int32Array(model.length);
    this.y = new Int32Array(model.length);
    for (const { x, y, columns, nodes } of this.blocks) {
      nodes.forEach((at, place) => {
        this.x[at] = x + (place % columns) * this.cell;
        this.y[at] = y + Math.floor(place / columns) * this.cell;
      });
    }
    this.write();
    this.paint();
  }

  // Blocks side by side, with room for a name above each.
  shelves(groups, cell, width, aspect) {
    const blocks = [];
    const head = Math.ceil(HEAD * this.scale);
    const between = Math.ceil(BETWEEN * this.scale);
    let x = 0;
    let top = 0;
    let bottom = 0;
    for (const group of groups) {
      const least = Math.ceil((group.name.length + 8) * 7 * this.scale / cell);
      const most = Math.max(1, Math.floor(width / cell));
      const columns = Math.min(most, Math.max(least, Math.ceil(Math.sqrt(group.nodes.length * aspect))));
      const rows = Math.ceil(group.nodes.length / columns);
      if (x > 0 && x + columns * cell > width) {
        x = 0;
        top = bottom + between;
      }
      blocks.push({ name: group.name, nodes: group.nodes, x, y: top + head, columns, rows });
      bottom = Math.max(bottom, top + head + rows * cell);
      x += columns * cell + between;
    }
    return blocks;
  }

  write() {
    if (!this.isHeaded) {
      this.names.replaceChildren();
      return;
    }
    this.names.replaceChildren(...this.blocks.map((block) => {
      const bad = block.nodes.filter((at) => this.model.state[at] !== READY).length;
      const name = el('span', {}, block.name, ' ', el('b', {}, number(block.nodes.length)));
      if (bad) name.append(' ', el('i', {}, number(bad)));
      name.style.left = `${block.x / this.scale}px`;
      name.style.top = `${block.y / this.scale - HEAD}px`;
      name.style.maxWidth = `${Math.max(60, (block.columns * this.cell) / this.scale)}px`;
      return name;
    }));
  }

  // -- drawing -------------------------------------------------------------------------------------------------------

  colours() {
    const style = getComputedStyle(document.documentElement);
    this.palette = this.model.states.map((_, state) => style.getPropertyValue(`--state-${state}`).trim());
    this.faint = style.getPropertyValue('--faint').trim();
    // The many that are well are pale, so that the others stand out; of those that were searched for all stand out.
    if (this.shown) this.palette[READY] = style.getPropertyValue('--found').trim();
    this.ink = style.getPropertyValue('--ink').trim();
    this.writing = style.getPropertyValue('--writing').trim();
    this.writingOnColour = style.getPropertyValue('--writing-on-colour').trim();
  }

  get gap() {
    if (this.cell >= 14 * this.scale) return Math.ceil(2 * this.scale);
    return this.cell >= 5 ? 1 : 0;
  }

  paint() {
    this.colours();
    const context = this.canvas.getContext('2d');
    const side = this.cell - this.gap;
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const { state } = this.model;
    for (let wanted = -1; wanted < this.palette.length; wanted += 1) {
      context.fillStyle = wanted < 0 ? this.faint : this.palette[wanted];
      for (const at of this.order) {
        const is = this.shown && !this.shown(at) ? -1 : state[at];
        if (is === wanted) context.fillRect(this.x[at], this.y[at], side, side);
      }
    }
    if (this.cell >= NAMED * this.scale) for (const at of this.order) this.label(context, at);
    this.mark();
  }

  // A node's name in its cell; of a long one the end, in which they differ.
  label(context, at) {
    const room = this.cell - this.gap - 8 * this.scale;
    context.font = `${11 * this.scale}px system-ui, sans-serif`;
    const isPale = this.model.state[at] === READY || (this.shown && !this.shown(at));
    context.fillStyle = isPale ? this.writing : this.writingOnColour;
    let text = this.model.names[at];
    while (text.length > 3 && context.measureText(text).width > room) text = `…${text.slice(text.startsWith('…') ? 2 : 1)}`;
    context.fillText(text, this.x[at] + 4 * this.scale, this.y[at] + this.cell - this.gap - 5 * this.scale);
  }

  // Draws these again, and shows where they are.
  changed(names) {
    if (!this.x) return;
    const places = names.map((name) => this.model.place.get(name)).filter((at) => at !== undefined);
    const context = this.canvas.getContext('2d');
    const side = this.cell - this.gap;
    const now = performance.now();
    for (const at of places) {
      context.fillStyle = this.shown && !this.shown(at) ? this.faint : this.palette[this.model.state[at]];
      context.fillRect(this.x[at], this.y[at], side, side);
      if (this.cell >= NAMED * this.scale) this.label(context, at);
    }
    if (places.length <= PULSES_MAX) {
      this.pulses.push(...places.map((at) => ({ at, began: now })));
      this.pulses = this.pulses.slice(-PULSES_MAX);
    }
    this.write();
    this.mark();
  }

  // The layer above: where the cursor is, and what has just changed.
  mark() {
    if (!this.x) return;
    const context = this.marks.getContext('2d');
    const now = performance.now();
    const isStill = matchMedia('(prefers-reduced-motion: reduce)').matches;
    context.clearRect(0, 0, this.marks.width, this.marks.height);
    this.pulses = this.pulses.filter(({ began }) => now - began < PULSE_MS);
    for (const { at, began } of this.pulses) {
      const age = isStill ? 0.3 : (now - began) / PULSE_MS;
      const reach = this.cell / 2 + 14 * this.scale * age;
      context.globalAlpha = 1 - age;
      context.strokeStyle = this.palette[this.model.state[at]];
      context.lineWidth = 2 * this.scale;
      context.beginPath();
      context.arc(this.x[at] + this.cell / 2, this.y[at] + this.cell / 2, reach, 0, 2 * Math.PI);
      context.stroke();
    }
    context.globalAlpha = 1;
    for (const at of [this.hover, this.order[this.cursor] ?? -1]) {
      if (at < 0 || at >= this.x.length) continue;
      const room = Math.max(1, Math.round(2 * this.scale));
      context.lineWidth = room;
      context.strokeStyle = this.ink;
      const side = this.cell - this.gap + room;
      context.strokeRect(this.x[at] - room / 2, this.y[at] - room / 2, side, side);
    }
    if (this.pulses.length && !this.isMoving) {
      this.isMoving = true;
      requestAnimationFrame(() => {
        this.isMoving = false;
        this.mark();
      });
    }
  }

  // -- pointing ------------------------------------------------------------------------------------------------------

  // Where a node's cell is, in pixels of the canvas; for tests and for who scripts the page.
  locate(name) {
    const at = this.model?.place.get(name);
    return at === undefined ? null : { x: this.x[at], y: this.y[at], size: this.cell - this.gap };
  }

  under(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) * this.scale;
    const y = (event.clientY - box.top) * this.scale;
    for (const block of this.blocks) {
      const column = Math.floor((x - block.x) / this.cell);
      const row = Math.floor((y - block.y) / this.cell);
      if (column < 0 || column >= block.columns || row < 0 || row >= block.rows) continue;
      return block.nodes[row * block.columns + column] ?? -1;
    }
    return -1;
  }

  pointed(event) {
    this.point(this.under(event));
  }

  point(at) {
    if (at === this.hover) return;
    this.hover = at;
    this.explain(at);
    this.mark();
  }

  explain(at) {
    const model = this.model;
    this.tip.hidden = at < 0;
    if (at < 0) return;
    const where = [
      model.site[at] && `site ${model.site[at]}`,
      model.pool[at] && `pool ${model.pool[at]}`,
      model.slot[at] >= 0 && `slot ${model.slot[at]}`,
      model.owner(at),
    ].filter(Boolean).join(' · ');
    const state = model.state[at];
    this.tip.replaceChildren(
      el('strong', {}, model.names[at]),
      el('span', { class: `state s${state}` }, model.states[state]),
      el('small', {}, where),
    );
    const x = this.x[at] / this.scale;
    const y = this.y[at] / this.scale;
    const side = this.cell / this.scale;
    const room = this.frame.clientWidth;
    this.tip.style.left = `${Math.max(0, Math.min(x + side + 8, room - this.tip.offsetWidth - 4))}px`;
    const below = y + side + 8;
    const fits = below + this.tip.offsetHeight < this.frame.clientHeight;
    this.tip.style.top = `${fits ? below : Math.max(0, y - this.tip.offsetHeight - 8)}px`;
  }

  clicked(event) {
    const at = this.under(event);
    if (at < 0) return;
    this.cursor = this.order.indexOf(at);
    this.mark();
    this.open(this.model.names[at]);
  }

  key(event) {
    const last = this.order.length - 1;
    if (last < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const from = this.cursor;
    const next = { ArrowRight: from + 1, ArrowLeft: from - 1, Home: 0, End: last }[event.key] ?? this.jump(event.key);
    if (event.key === 'Enter' && from >= 0) this.open(this.model.names[this.order[from]]);
    else if (next !== undefined) {
      this.cursor = Math.max(0, Math.min(last, next));
      this.explain(this.order[this.cursor]);
      this.mark();
    } else return;
    event.preventDefault();
  }

  jump(key) {
    const from = Math.max(0, this.cursor);
    if (key === 'ArrowDown' || key === 'ArrowUp') {
      let first = 0;
      const block = this.blocks.find(({ nodes }) => {
        if (from < first + nodes.length) return true;
        first += nodes.length;
        return false;
      });
      return from + (key === 'ArrowDown' ? block.columns : -block.columns);
    }
    if (key !== 'n' && key !== 'N') return undefined;
    for (let step = 1; step <= this.order.length; step += 1) {
      const place = (this.cursor + step) % this.order.length;
      if (this.model.state[this.order[place]] !== READY) return place;
    }
    return undefined;
  }
}

// One block over the whole width.
function whole(group, cell, width) {
  const columns = Math.max(1, Math.floor(width / cell));
  return { ...group, x: 0, y: 0, columns, rows: Math.ceil(group.nodes.length / columns) };
}
