// Divides a graph into layers, so that edges lead down.

const ENTRY = "gateway";

/** The names in layers. Each name is below all names with an edge to it. Edges that close a cycle are ignored. */
export function layersOf(names, edges) {
  const targets = new Map();
  for (const { source, target } of edges) {
    if (target !== ENTRY) targets.set(source, [...(targets.get(source) ?? []), target]);
  }
  const forward = [];
  const seen = new Set();
  const walk = (name, above) => {
    seen.add(name);
    for (const target of targets.get(name) ?? []) {
      if (above.has(target)) continue;
      forward.push([name, target]);
      if (!seen.has(target)) walk(target, new Set([...above, target]));
    }
  };
  walk(ENTRY, new Set([ENTRY]));
  const sources = (name) => forward.filter(([, target]) => target === name).map(([source]) => source);
  const depths = new Map([[ENTRY, -1]]);
  const depth = (name) => {
    if (!depths.has(name)) depths.set(name, Math.max(-1, ...sources(name).map(depth)) + 1);
    return depths.get(name);
  };
  const layers = [];
  for (const name of names) (layers[depth(name)] ??= []).push(name);
  return layers.filter(Boolean);
}
