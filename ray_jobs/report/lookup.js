"use strict";
(() => {
  const data = JSON.parse(document.getElementById("rows").textContent);
  const rows = new Map(Object.entries(data.rows));
  const children = new Map();
  for (const [id, row] of rows) {
    if (row[1]) children.set(row[1], [...(children.get(row[1]) || []), id]);
  }
  const found = document.getElementById("found");
  const input = document.getElementById("id");

  const add = (parent, tag, css, text) => {
    const made = document.createElement(tag);
    if (css) made.className = css;
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };
  const show = (id) => {
    const [tables, , text, label] = rows.get(id);
    const box = add(found, "div", "row");
    const link = add(box, "a", "id", id);
    link.href = "#row=" + encodeURIComponent(id);
    box.append(" ");
    for (const at of tables) add(box, "span", "tag", data.tables[at]);
    if (label) add(box, "span", "tag", label);
    add(box, "p", "text", text).dir = "auto";
  };
  const list = (title, ids, most) => {
    if (!ids.length) return;
    add(found, "h3", "", title);
    ids.slice(0, most).forEach(show);
    if (ids.length > most) add(found, "p", "muted", `and ${ids.length - most} more`);
  };
  const lineage = (id) => {
    const path = [id];
    for (let parent = rows.get(id)[1]; rows.has(parent) && !path.includes(parent); parent = rows.get(parent)[1]) {
      path.push(parent);
    }
    list("From this row back to its seed", path, 50);
    const end = rows.get(path[path.length - 1])[1];
    if (end) add(found, "p", "muted", `its parent ${end} is not in this page`);
    list("Made from this row", children.get(id) || [], 20);
  };
  const look = (words) => {
    found.replaceChildren();
    const asked = words.trim();
    if (!asked) return;
    if (rows.has(asked)) return lineage(asked);
    const lower = asked.toLowerCase();
    const hits = [...rows.keys()].filter(
      (id) => id.startsWith(lower) || rows.get(id)[2].toLowerCase().includes(lower));
    if (hits.length === 1) return lineage(hits[0]);
    if (!hits.length) return add(found, "p", "muted", "No such row in this page.");
    list(`${hits.length} rows`, hits, 20);
  };
  const fromAddress = () => {
    const match = location.hash.match(/^#row=(.+)$/);
    if (!match) return;
    input.value = decodeURIComponent(match[1]);
    look(input.value);
    document.getElementById("lineage").scrollIntoView();
  };
  document.getElementById("look").addEventListener("submit", (event) => {
    event.preventDefault();
    look(input.value);
  });
  window.addEventListener("hashchange", fromAddress);
  fromAddress();
})();
