// What test_pages.py asks of a page, by name.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
// What reaches past the window, unless a box around it scrolls.
const wide = () => {
  const limit = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= limit) return [];
  const inside = e => { for (let up = e.parentElement; up && up !== document.body;
    up = up.parentElement) if (getComputedStyle(up).overflowX !== 'visible') return true; };
  const found = all('*', document.body).filter(e =>
    e.getBoundingClientRect().right > limit + 0.5 && !inside(e));
  return found.length ? found.map(e => e.outerHTML.slice(0, 120)) : ['some text'];
};
// Boxes of tables that scroll.
const clipped = () => all('table').filter(table => {
    const box = table.parentElement;
    return table.getBoundingClientRect().right > box.getBoundingClientRect().right + 1
      || box.scrollWidth > box.clientWidth + 1; })
  .map(table => (table.caption?.innerText || table.innerText).slice(0, 80));
const cut = () => all('figure .plot').slice(0, 1)
  .filter(plot => plot.scrollWidth > plot.clientWidth).map(plot => plot.ariaLabel);
const printed = () => all('details').filter(details =>
    details.checkVisibility() && !details.lastElementChild.checkVisibility())
  .map(details => details.innerText.slice(0, 60));
const unfold = () => all('details').forEach(details => { details.open = true });
const bright = () => [document.documentElement, document.body]
  .map(e => getComputedStyle(e).backgroundColor).filter(color => /rgb\(255/.test(color));
const outline = () => {
  const levels = all('h1,h2,h3,h4,h5,h6').map(h => Number(h.tagName[1]));
  const ids = all('[id]').map(e => e.id), named = new Set();
  return {
    headings: levels[0] === 1 && levels.filter(level => level === 1).length === 1
      && levels.every((level, n) => n === 0 || level <= levels[n - 1] + 1),
    twice: ids.filter(id => named.size === named.add(id).size),
    links: all('a[href]').map(a => a.getAttribute('href')),
    active: all('script, iframe, object, embed, form, base').length,
  };
};

// axe is slow in proportion to a page's elements. So it runs where a page has elements of a kind that
// it has not found good on another. A kind is the element's name and those of what is in it, its
// attributes, of those that rules read with their values, whether it is empty, whether it scrolls and
// can be reached then; and the same of all that it is in.
const kind = e => {
  const said = ({ name, value }) =>
    /^(class|role|tabindex|lang|scope|for|headers|aria-(?!label$).*)$/.test(name) || !value.trim()
      ? `${name}=${value.trim()}` : name;
  const inside = [...e.childNodes].filter(n => n.nodeType === Node.ELEMENT_NODE || n.data?.trim());
  return `${e.localName}[${[...e.attributes].map(said)}]`
    + `(${[...new Set(inside.map(n => n.nodeName))]})${e.textContent.trim() ? '' : '-'}`
    + (e.scrollWidth > e.clientWidth ? `~${!!e.querySelector('a[href],[tabindex],summary')}` : '');
};
const kinds = () => {
  const chains = new Map([[null, '']]);
  const chain = e => {
    if (!chains.has(e)) chains.set(e, `${chain(e.parentElement)} ${kind(e)}`);
    return chains.get(e);
  };
  return [...new Set(all('*').filter(e => !e.parentElement?.closest('svg, .highlight')).map(chain))];
};
// Of elements with the same colours and type, on all pages, one is marked in each theme; the inside
// of pictures, code and rows of tables like others go unless marked; and for the contrast, which is
// the slowest, all that is not marked goes.
const mark = known => {
  const seen = new Set(known), fresh = [], styles = new Map(), grounds = new Map([[null, '']]);
  const ground = e => {
    if (!grounds.has(e)) {
      const style = getComputedStyle(e);
      styles.set(e, style);
      grounds.set(e, ground(e.parentElement) + style.backgroundColor + style.opacity);
    }
    return grounds.get(e);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), written = new Set();
  while (texts.nextNode()) {
    const text = texts.currentNode;
    if (text.data.trim()) written.add(text.parentElement);
  }
  for (const e of written) {
    const under = ground(e), own = styles.get(e);
    const look = [own.color, own.fill, own.fontSize, own.fontWeight, under].join();
    if (!seen.has(look) && e.checkVisibility()) {
      seen.add(look); fresh.push(look); e.dataset.look = '';
    }
  }
  return fresh;
};
const thin = () => {
  const seen = new Set();
  const drop = e => e.matches('[data-look]') || e.querySelector('[data-look]') || e.remove();
  all('svg *, .highlight span').forEach(drop);
  all('tbody tr, li').forEach(e => {
    const whole = [e, ...all('*', e)].map(kind).join();
    if (seen.has(whole)) drop(e); else seen.add(whole);
  });
};
const prune = () => {
  const kept = new Set();
  for (let e of all('[data-look]'))
    for (; e && !kept.has(e); e = e.parentElement) kept.add(e);
  all('*', document.body).forEach(e => kept.has(e) || e.remove());
};
// Serious and critical violations of accessibility rules; rules of less are not asked.
const grave = rule => ['serious', 'critical'].includes(rule.impact);
const others = () => Object.fromEntries(axe._audit.rules
  .filter(rule => rule.id === 'color-contrast' || !grave(rule))
  .map(rule => [rule.id, { enabled: false }]));
const judge = async how => {
  const found = await axe.run({ resultTypes: ['violations'], ...how });
  return found.violations.filter(grave).flatMap(rule => rule.nodes.slice(0, 6).map(node =>
    `${rule.id}: ${node.html.slice(0, 160)} ${node.failureSummary.slice(0, 200)}`));
};
const axed = () => judge({ rules: others() });
const contrast = () => (prune(), judge({ runOnly: ['color-contrast'] }));
Object.assign(globalThis, { wide, clipped, cut, printed, unfold, bright, outline, kinds, mark, thin,
  axed, contrast });
