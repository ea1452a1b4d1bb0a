// Names first: a search for `level_eyes` should open `level_eyes`, not what resembles it. Every word must be there;
// a heading that is the word outranks one that holds it, and that outranks the text. Fuzzy search is for when nothing matches.
(() => {
  const Fuzzy = window.Fuse;
  if (!Fuzzy) return;
  window.Fuse = class {
    constructor(index, options) { this.index = index; this.fuzzy = new Fuzzy(index, options); }
    search(query, { limit = 20 } = {}) {
      const words = query.toLowerCase().split(/\s+/).filter(Boolean);
      const score = (e) => {
        const section = (e.section || "").toLowerCase(), title = e.title.toLowerCase(), text = e.text.toLowerCase();
        let sum = 0;
        for (const w of words) {
          const n = section === w ? 40 : title === w ? 30 : section.includes(w) ? 12 : title.includes(w) ? 6 : text.includes(w) ? 1 : 0;
          if (!n) return 0;
          sum += n;
        }
        return sum;
      };
      const hits = this.index.map((item) => ({ item, score: score(item) })).filter((h) => h.score).sort((a, b) => b.score - a.score);
      return hits.length ? hits.slice(0, limit) : this.fuzzy.search(query, { limit });
    }
  };
})();
