'use strict';
// Everything that comes from the cache is inserted as text, never as markup.

const $ = (id) => document.getElementById(id);
const at = (path) => `${document.documentElement.dataset.mount}/${path}`;

function element(name, content, options = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) made[key] = value;
  for (const part of Array.isArray(content) ? content : [content]) {
    if (part !== null && part !== undefined) made.append(part);
  }
  return made;
}

const row = (...cells) => element('tr', cells.map((cell) => (cell instanceof Node && cell.nodeName === 'TD' ? cell : element('td', cell))));
const name = (text) => element('td', text, { className: 'name' });
const fill = (id, nodes) => $(id).replaceChildren(...nodes);

const number = (value) => Math.round(value).toLocaleString('en');
const percent = (value) => `${(100 * value).toFixed(1)} %`;
function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (value >= 1024 && unit < 4) { value /= 1024; unit += 1; }
  return `${value.toFixed(unit && value < 100 ? 1 : 0)} ${units[unit]}`;
}
function time(seconds) {
  if (seconds === 0) return '0';
  if (seconds < 1e-6) return `${(seconds * 1e9).toFixed(0)} ns`;
  if (seconds < 1e-3) return `${(seconds * 1e6).toFixed(1)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(0)} min`;
  return `${(seconds / 3600).toFixed(0)} h`;
}
const nanos = (value) => (value ? time(value / 1e9) : '–');
const clock = (millis) => new Date(millis).toLocaleTimeString();
const duration = (value) => (typeof value === 'number' ? value : value.secs + value.nanos / 1e9);
const target = (it) => `${it.class}${it.text ? ' ' : ''}${it.text ?? ''}${it.namespace ? ` in ${it.namespace}` : ''}`;

// Requests.

let csrf = '1';
async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', 'X-Larder-Csrf': csrf },
    body: JSON.stringify(body),
  };
  const response = await fetch(at(path), options);
  if (response.redirected || response.status === 401) { location.reload(); return new Promise(() => {}); }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ?? `the server answered with ${response.status}`);
  return answer;
}

function onSubmit(id, output, act) {
  $(id).addEventListener('submit', async (event) => {
    event.preventDefault();
    try {
      await act(new FormData(event.target));
    } catch (error) {
      fill(output, [element('p', error.message, { className: 'bad' })]);
    }
  });
}

// The counters of each second.

const history = [];
let before = null;

function total(stats) {
  const sum = { served: 0, misses: 0, bypassed: 0, micros: 0, queries: 0, bytes: 0 };
  const caches = stats.caches.filter((cache) => cache.routes.length > 0);
  for (const cache of caches.length ? caches : stats.caches) {
    const all = cache.total;
    sum.served += all.hits + all.stale_hits + all.collapsed;
    sum.misses += all.misses;
    sum.bypassed += all.bypassed;
  }
  for (const { total: all } of caches.length ? caches : stats.caches) {
    sum.micros += all.saved.fill_time_micros;
    sum.queries += all.saved.queries;
    sum.bytes += all.saved.bytes;
  }
  return sum;
}

let lastNumber = 0;
function show({ stats, invalidations }) {
  const now = total(stats);
  const moment = performance.now();
  if (before) {
    const seconds = Math.max((moment - before.moment) / 1000, 0.2);
    const rate = (key) => Math.max(now[key] - before.sum[key], 0) / seconds;
    const looked = rate('served') + rate('misses');
    history.push({ ratio: looked ? rate('served') / looked : null, requests: looked + rate('bypassed') });
    if (history.length > 120) history.shift();
    tiles(stats, rate, looked);
    charts();
  }
  before = { moment, sum: now };
  caches(stats);
  levels(stats);
  routes(stats);
  // The numbers of a process that started anew begin again.
  if (invalidations.some((it) => it.number <= lastNumber)) $('past').replaceChildren();
  lastNumber = invalidations.at(-1)?.number ?? lastNumber;
  $('past').prepend(...invalidations.reverse().map(past));
  while ($('past').children.length > 256) $('past').lastChild.remove();
}

function tiles(stats, rate, looked) {
  const memory = stats.memory;
  const busiest = stats.caches.filter((cache) => cache.last_minute.hits).sort((a, b) => b.last_minute.hits - a.last_minute.hits)[0];
  const filled = stats.caches.map((cache) => cache.last_minute.fill_time.p99_nanos);
  const evictions = memory.evictions_last_minute.size;
  const all = [
    ['Requests', `${number(looked + rate('bypassed'))}/s`],
    ['Hit ratio', looked ? percent(rate('served') / looked) : '–'],
    ['Hit, p99', nanos(busiest?.last_minute.hit_time.p99_nanos)],
    ['Slowest fill, p99', nanos(Math.max(0, ...filled))],
    ['Fill time saved', `${time(rate('micros') / 1e6)}/s`],
    ['Queries saved', `${number(rate('queries'))}/s`],
    ['Bytes saved', `${bytes(rate('bytes'))}/s`],
    ['Memory', [bytes(memory.bytes), element('small', ` of ${bytes(memory.capacity_bytes)}`)]],
    ['Entries', number(memory.entries)],
    ['Evicted for size', `${number(evictions)}/min`],
    ['Fills in flight', number(stats.fills_running)],
    ['Invalidations', number(stats.invalidations)],
  ];
  fill('tiles', all.map(([title, value]) => element('div', [element('dt', title), element('dd', value)])));
}

function charts() {
  const most = Math.max(1, ...history.map((second) => second.requests));
  $('most-requests').textContent = `(at most ${number(most)})`;
  chart('chart-ratio', history.map((second) => second.ratio));
  chart('chart-requests', history.map((second) => second.requests / most));
}

function chart(id, values) {
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'polyline');
  const start = 240 - 2 * (values.length - 1);
  const points = values.map((value, second) => (value === null ? '' : `${start + 2 * second},${58 - 56 * value}`));
  line.setAttribute('points', points.filter(Boolean).join(' '));
  $(id).replaceChildren(line);
}

function caches(stats) {
  const used = stats.caches.filter(({ total: it }) => it.hits + it.stale_hits + it.collapsed + it.misses + it.bypassed);
  fill('caches', used.map(({ name: cache, last_minute: it }) => {
    const requests = it.hits + it.stale_hits + it.collapsed + it.misses + it.bypassed;
    return row(name(cache), number(requests), requests ? percent(it.hit_ratio) : '–', nanos(it.hit_time.p99_nanos), nanos(it.fill_time.p99_nanos),
      number(it.stale_hits + it.stale_on_error), number(it.collapsed), number(it.refused), number(it.bypassed), number(it.invalid));
  }));
}

function levels(stats) {
  const { memory, shared, log } = stats;
  const state = (text, good) => element('td', text, { className: good ? 'good' : 'bad' });
  const rows = [row('First level', `${number(memory.entries)} entries, ${bytes(memory.bytes)} of ${bytes(memory.capacity_bytes)}; evicted ${number(memory.evictions.size)} for size, ${number(memory.evictions.expired)} expired`)];
  if (shared.usage || shared.hits + shared.misses + shared.errors) {
    const usage = shared.usage ? `${number(shared.usage.entries)} keys, ${bytes(shared.usage.bytes)}${shared.usage.capacity_bytes ? ` of ${bytes(shared.usage.capacity_bytes)}` : ''}; ` : '';
    rows.push(row('Second level', `${usage}${number(shared.hits)} hits, ${number(shared.misses)} misses, ${number(shared.errors)} errors; read p99 ${nanos(shared.read_time.p99_nanos)}`));
  }
  for (const server of stats.servers) {
    const good = server.open_circuits === 0;
    rows.push(row(`Server for the ${server.role}`, state(`${server.address}: ${good ? 'answers' : `${server.open_circuits} of ${server.circuits} circuits are open`}`, good)));
  }
  const lag = log.shared ? `lag ${time(duration(log.lag))}, record ${number(log.applied)}` : 'of this process alone';
  rows.push(row('Log of invalidations', state(`${log.synchronised ? 'up to date' : 'not verified'}: ${lag}; ${number(stats.invalidations_pending)} waiting, ${number(stats.invalidations_scheduled)} scheduled`, log.synchronised)));
  for (const queue of stats.queues) {
    const good = !queue.stopped && !queue.dead_letters;
    rows.push(row(`Write-behind ${queue.name}`, state(queue.stopped ?? `${number(queue.queued)} queued, oldest ${time(duration(queue.oldest))}, ${number(queue.dead_letters)} dead letters`, good)));
  }
  fill('levels', rows);
}

function routes(stats) {
  const all = stats.caches.flatMap((cache) => cache.routes.map((route) => ({ cache: cache.name, ...route })));
  all.sort((a, b) => b.fill_time_total_nanos - a.fill_time_total_nanos || b.requests - a.requests);
  fill('route-rows', all.map((it) => row(name(it.route), it.cache, number(it.requests), it.requests > it.bypassed ? percent(it.hit_ratio) : '–',
    nanos(it.fill_time.p50_nanos), nanos(it.fill_time.p99_nanos), time(it.fill_time_total_nanos / 1e9),
    Object.entries(it.refusals).map(([reason, count]) => `${reason} ${number(count)}`).join(', '))));
}

const past = (it) => row(clock(it.at_millis), name([...it.targets.map(target), ...(it.more_targets ? [`and ${it.more_targets} more`] : [])].join(', ')), it.mode, it.by ?? (it.own ? 'this process' : 'another process'), it.because ?? '');

// The server ends the stream now and then, and the browser goes on with the next; only a longer pause is worth a message.
let lost;
function listen() {
  const source = new EventSource(at('api/live'));
  source.onopen = () => { clearTimeout(lost); lost = undefined; $('state').textContent = 'live'; };
  source.onerror = () => {
    lost ??= setTimeout(() => { $('state').textContent = 'no connection; trying again'; }, 3000);
    // The server refused: the session ended, or there are too many streams.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => ask('api/whoami').catch(() => {}).then(listen), 3000);
  };
  source.onmessage = (event) => show(JSON.parse(event.data));
}

// Views.

const tabs = [...document.querySelectorAll('[role=tab]')];
function select(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute('aria-selected', chosen);
    other.tabIndex = chosen ? 0 : -1;
    $(other.getAttribute('aria-controls')).hidden = !chosen;
  }
  tab.focus();
  ({ 'tab-log': audit, 'tab-keys': keys, 'tab-advice': advice })[tab.id]?.();
}
for (const [place, tab] of tabs.entries()) {
  tab.addEventListener('click', () => select(tab));
  tab.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) select(tabs[(place + step + tabs.length) % tabs.length]);
    else if (event.key === 'Home') select(tabs[0]);
    else if (event.key === 'End') select(tabs[tabs.length - 1]);
    else return;
    event.preventDefault();
  });
}

const tag = (it) => element('span', [it.class === 'tag' ? '' : `${it.class} `, it.tag, element('small', ` ${it.source}`)], { className: 'tag' });
const OWN = ['kind', 'url', 'url-in-partitions', 'query', 'namespace'];
function chosenTags(tags) {
  const chosen = tags.filter((it) => !OWN.includes(it.class));
  const more = tags.length - Math.min(chosen.length, 12);
  return [...chosen.slice(0, 12).map(tag), more ? element('small', `and ${more} more`, { className: 'dim' }) : ''];
}
const left = (entry) => entry.levels.map((level) => `${time(level.fresh_seconds)}${entry.levels.length > 1 ? ` (${level.level})` : ''}`).join(', ');

onSubmit('entry-form', 'entry-rows', async (form) => {
  const query = new URLSearchParams([...form].filter(([, value]) => value));
  const { matched, is_part: isPart, entries } = await ask(`api/entries?${query}`);
  $('entry-count').textContent = `${isPart ? 'at least ' : ''}${number(matched)} entries match; the first ${entries.length} are shown`;
  fill('entry-rows', entries.map((it) => row(name(`${it.key.kind}: ${it.key.name}`), it.state.word, left(it), time(it.age_seconds), number(it.hits), bytes(it.bytes),
    time(it.fill_millis / 1000), number(it.queries), element('td', chosenTags(it.tags)))));
});

onSubmit('explain-form', 'explanations', async (form) => {
  const query = new URLSearchParams([...form].filter(([, value]) => value));
  const all = await ask(`api/explain?${query}`);
  fill('explanations', all.length ? all.map(explanation) : [element('p', 'There is no response cache.')]);
});

function explanation(it) {
  const rows = [];
  const add = (title, word) => word && rows.push(row(title, element('td', [element('b', word.word), ` ${word.sentence}`, word.remedy ? element('div', `To change that: ${word.remedy}`, { className: 'good' }) : null])));
  const { decision, entry, response, last_refusal: last } = it;
  add('Outcome', decision.outcome);
  add('fwd', decision.forward);
  add('Reason', decision.reason);
  if (decision.cause) rows.push(row('Because of', name(decision.cause)));
  if (decision.changes_in_seconds !== undefined) rows.push(row('Changes in', time(decision.changes_in_seconds)));
  if (it.key) rows.push(row('Key', element('td', it.key.parts.map((part) => element('span', [part.value, element('small', ` ${part.part}`)], { className: 'tag' })))));
  if (entry) {
    add('Entry', entry.state);
    rows.push(row('Age', time(entry.age_seconds)), row('Fresh for', left(entry)));
    rows.push(row('Then', entry.forecast.slice(1).map((step) => `${step.state.word} in ${time(step.in_seconds)}`).join(', ')));
    add('Lifetime from', entry.lifetime);
    add('Ends earlier', entry.lifetime_cut);
    rows.push(row('Fill', `${time(entry.fill_millis / 1000)}, ${number(entry.queries)} queries`), row('Hits', number(entry.hits)));
    rows.push(row('Tags', element('td', entry.tags.map(tag))));
  }
  if (response) rows.push(row('Response', `status ${response.status}, ${bytes(response.body_bytes)}${response.is_for_all ? ', for all clients' : ''}`));
  if (last) {
    add('Last not stored', last.reason);
    rows.push(row('', `${time(last.seconds_ago)} ago${last.cause ? `, because of ${last.cause}` : ''}`));
  }
  return element('div', [element('h3', `${it.cache}${it.route ? `, route ${it.route}` : ''}`), element('table', element('tbody', rows))], { className: 'card' });
}

onSubmit('graph-form', 'graph-columns', async (form) => {
  const { tag: of, kinds, is_part: isPart } = await ask(`api/graph?${new URLSearchParams(form)}`);
  const order = ['query', 'object', 'fragment', 'response'].filter((kind) => kinds[kind]);
  const column = (kind) => element('div', [element('h3', `${isPart ? 'at least ' : ''}${number(kinds[kind].entries)} × ${kind}`),
    element('ul', kinds[kind].nodes.map((node) => element('li', [element('code', node.name), element('span', ` ${number(node.hits)} hits`, { className: 'dim' }), ...node.parts.slice(0, 8).map((part) => element('div', `made of ${part}`, { className: 'dim' }))])))]);
  fill('graph-columns', order.length ? order.map(column) : [element('p', `Nothing in memory carries the tag ${of}.`)]);
});

onSubmit('invalidate-form', 'preview', async (form) => {
  const wanted = { [form.get('by')]: form.get('value'), soft: form.get('soft') === 'on' };
  if (form.get('because')) wanted.because = form.get('because');
  const it = await ask('api/preview', wanted);
  const confirm = element('button', `Invalidate ${it.is_estimate ? 'about ' : ''}${number(it.entries)} entries`, { className: 'danger' });
  confirm.addEventListener('click', async () => {
    confirm.disabled = true;
    try {
      const { outcome } = await ask('api/invalidate', wanted);
      fill('preview', [element('p', `Done: the invalidation is ${outcome}.`, { className: 'good' })]);
    } catch (error) {
      fill('preview', [element('p', error.message, { className: 'bad' })]);
    }
  });
  fill('preview', [
    element('p', `${it.is_estimate ? 'About ' : ''}${number(it.entries)} entries of this process, ${bytes(it.bytes)}${it.is_estimate ? ' (an estimate from a part of them)' : ''}. Entries of other processes and of the second level are reached too.`),
    element('p', ['Targets: ', ...it.targets.map((of) => element('span', target(of), { className: 'tag' }))]),
    it.examples.length ? element('ul', it.examples.map((example) => element('li', element('code', example)))) : '',
    confirm,
  ]);
  confirm.focus();
});

const parts = (key) => element('td', key.parts.filter((part) => !['version', 'layer', 'origin', 'path', 'query', 'name'].includes(part.part)).map((part) => element('span', [part.value, element('small', ` ${part.part}`)], { className: 'tag' })));

async function keys() {
  const { hot_seconds: seconds, hot, cold, sampled } = await ask('api/keys');
  $('hot-time').textContent = `Requests of the last ${number(seconds)} seconds, in steps of up to 64.`;
  fill('hot-rows', hot.slice(0, 50).map((it) => row(name(`${it.key.kind}: ${it.key.name}`), number(it.requests), (it.requests / seconds).toFixed(1), parts(it.key))));
  $('cold-share').textContent = `The stored entries that were not requested for longest, of a sample of ${percent(sampled)} of all keys.`;
  fill('cold-rows', cold.slice(0, 50).map((it) => row(name(`${it.key.kind}: ${it.key.name}`), time(it.idle_seconds), number(it.requests), bytes(it.bytes), parts(it.key))));
}

async function advice() {
  const all = await ask('api/advice');
  fill('advice-cards', all.length ? all.map((it) => element('div', [
    element('h3', [it.kind.replaceAll('-', ' '), element('small', ` ${[it.cache, it.route, it.about].filter(Boolean).join(' · ')}`, { className: 'dim' })]),
    element('p', it.text)], { className: 'card' })) : [element('p', 'There is no advice yet.')]);
}

$('keys-again').addEventListener('click', keys);
$('advice-again').addEventListener('click', advice);

async function audit() {
  const events = await ask('api/audit');
  fill('audit', events.map((it) => row(clock(it.at_millis), it.actor, it.action, name((it.targets ?? []).map(target).join(', ')), it.because ?? '', it.outcome)));
}

$('logout').addEventListener('click', async () => {
  await fetch(at('logout'), { method: 'POST', headers: { 'Content-Type': 'application/json', 'X-Larder-Csrf': csrf }, body: '{}' });
  location.reload();
});

ask('api/whoami').then((who) => {
  csrf = who.csrf;
  $('actor').textContent = `${who.actor} (${who.role})`;
  $('logout').hidden = csrf === '1';
  listen();
});
