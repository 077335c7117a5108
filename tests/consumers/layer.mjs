// A mixture-of-experts layer in JavaScript (Node, no package), from the recipes to y, for `refmoe compare`.
//
// node layer.mjs BUNDLE MINE.safetensors                 the inputs, against their digests, and the stages
// node layer.mjs values RECIPE NAME SEED EXPONENT ...    the bits of four elements of each
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
// --- recipe ---
const GOLDEN = 0x9E3779B97F4A7C15n, word64 = (z) => BigInt.asUintN(64, z);
function mix(z) {
  z = word64((z ^ (z >> 30n)) * 0xBF58476D1CE4E5B9n);
  z = word64((z ^ (z >> 27n)) * 0x94D049BB133111EBn);
  return z ^ (z >> 31n);
}
function key(seed, name) {
  let h = 0xCBF29CE484222325n;
  for (const byte of new TextEncoder().encode(name)) h = word64((h ^ BigInt(byte)) * 0x100000001B3n);
  return mix(word64(h + BigInt(seed) * GOLDEN));
}
const float = (bits) => new Float32Array(new Uint32Array([bits]).buffer)[0];
const bits = (value) => new Uint32Array(new Float32Array([value]).buffer)[0];
const bell = (w) => [0n, 16n, 32n, 48n].reduce((sum, at) => sum + Number((w >> at) & 0xFFFFn), -131070) / 65536;

const RECIPES = {
  bell,
  bf16: (w) => float(bits(bell(w)) & 0xFFFF0000),
  wide: (w) => float(Number((w >> 63n) << 31n | ((w >> 32n) % 40n + 107n) << 23n | w & 0x7FFFFFn)),
  dyadic: (w) => Number((w >> 32n) % 9n) - 4,
  unit: (w) => Number(w >> 40n) / 2 ** 24,
};
function generate(recipe, name, seed, exponent, count) { // every value is exact in a float
  const start = key(seed, name);
  return Float32Array.from({ length: count }, (_, i) =>
    RECIPES[recipe](mix(word64(start + BigInt(i + 1) * GOLDEN))) * 2 ** exponent);
}
// --- end ---
const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest();

// The inputs that recipes make, as { shape, data }; their bytes must have the manifest's digests (spec 7.5).
function inputs(manifest) {
  const made = {};
  for (const { name, shape, sha256: wanted, digest_of } of manifest.tensors.filter((t) => t.name in manifest.inputs)) {
    const { recipe, name: leaf, seed, exponent } = manifest.inputs[name];
    const data = generate(recipe, leaf, seed, exponent, shape.reduce((a, b) => a * b, 1));
    const size = data.byteLength / shape[0], part = (e) => sha256(new Uint8Array(data.buffer, e * size, size));
    const whole = () => sha256(new Uint8Array(data.buffer));
    const experts = () => sha256(...[...Array(shape[0]).keys()].map(part));
    const digest = (digest_of === "experts" ? experts() : whole()).toString("hex");
    if (digest !== wanted) throw new Error(`${name}: the recipe's bits are not the bundle's`);
    made[name] = { shape, data };
  }
  return made;
}

const row = ({ shape, data }, i) => data.subarray(i * shape.at(-1), (i + 1) * shape.at(-1));
const dot = (a, b) => Math.fround(a.reduce((sum, v, k) => sum + v * b[k], 0)); // sums in binary64, rounded once

function layer(t, topK) {
  const x = t.x, [E, F, D] = t["params.w_gate"].shape, T = x.shape[0], y = new Float32Array(T * D);
  const logits = new Float32Array(T * E), weights = new Float32Array(T * topK);
  for (let token = 0; token < T; token++) {
    const rows = row(x, token), l = logits.subarray(token * E, token * E + E);
    for (let e = 0; e < E; e++) l[e] = dot(rows, row(t["params.w_router"], e));
    const best = [...l.keys()].sort((a, b) => l[b] - l[a] || a - b).slice(0, topK);
    const powers = best.map((e) => Math.exp(l[e] - l[best[0]])), sum = powers.reduce((a, b) => a + b);
    const out = new Float64Array(D);
    best.forEach((e, k) => {
      const hidden = Float32Array.from({ length: F }, (_, f) => {
        const gate = dot(rows, row(t["params.w_gate"], e * F + f)), up = dot(rows, row(t["params.w_up"], e * F + f));
        return gate / (1 + Math.exp(-gate)) * up;
      });
      const weight = weights[token * topK + k] = powers[k] / sum;
      for (let d = 0; d < D; d++) out[d] += Math.fround(weight) * dot(hidden, row(t["params.w_down"], e * D + d));
    });
    y.set(out, token * D);
  }
  const of = (data, ...shape) => ({ shape, data });
  return { "routing.logits": of(logits, T, E), "routing.topk_weights": of(weights, T, topK), y: of(y, T, D) };
}

function write(path, tensors) { // safetensors
  let at = 0;
  const header = JSON.stringify(Object.fromEntries(Object.entries(tensors).map(([name, { shape, data }]) =>
    [name, { dtype: "F32", shape, data_offsets: [at, at += data.byteLength] }])));
  const length = new BigUint64Array([BigInt(Buffer.byteLength(header))]), payload = Object.values(tensors);
  writeFileSync(path, Buffer.concat([Buffer.from(length.buffer), Buffer.from(header),
    ...payload.map(({ data }) => Buffer.from(data.buffer))]));
}

const [first, ...rest] = process.argv.slice(2);
if (first === "values") {
  for (let at = 0; at < rest.length; at += 4) {
    const four = generate(rest[at], rest[at + 1], rest[at + 2], Number(rest[at + 3]), 4);
    console.log([...four].map((value) => bits(value).toString(16).padStart(8, "0")).join(" "));
  }
} else {
  const manifest = JSON.parse(readFileSync(`${first}/manifest.json`, "utf8"));
  const made = inputs(manifest);
  write(rest[0], { ...made, ...layer(made, manifest.config.top_k) });
}
