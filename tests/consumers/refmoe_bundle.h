/* refmoe_bundle.h: reads a golden bundle and makes its inputs again. C11 or C++11, little-endian, no dependency.
   rb_open    the two files of a bundle; 0 if they cannot be read or are not a bundle's
   rb_find    a stored tensor: its type, its shape and its bytes, which may be unaligned; 0 if it is not there
   rb_floats  a stored tensor of type F32 or BF16 as floats, malloc'd; NULL if it is not there
   rb_input   "x", "d_y" or "params.NAME" by recipe, malloc'd, and its shape; NULL if the manifest does not make it so
   A bundle's text is canonical (spec 7.3, 7.4): each key has one spelling. Whatever offsets and shapes a file claims,
   nothing outside it is read; digests are left to `refmoe check`. */
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char *manifest, *header, *payload; uint64_t size; } rb_bundle;
typedef struct { char dtype[16]; int rank; uint64_t shape[8], count; const char *data; } rb_tensor;
/* --- recipe --- */
static inline uint64_t rb_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
static inline uint64_t rb_key(uint64_t seed, const char *name) {
    uint64_t h = 0xCBF29CE484222325u;
    while (*name) h = (h ^ (unsigned char)*name++) * 0x100000001B3u;
    return rb_mix(h + seed * 0x9E3779B97F4A7C15u);
}
static inline float rb_float(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline float rb_element(const char *recipe, uint64_t key, uint64_t i, int exponent) { /* NaN: no such recipe */
    uint64_t w = rb_mix(key + (i + 1) * 0x9E3779B97F4A7C15u);
    int32_t sum = (int32_t)((w & 0xFFFF) + (w >> 16 & 0xFFFF) + (w >> 32 & 0xFFFF) + (w >> 48));
    uint32_t bits, wide = (uint32_t)(w >> 63) << 31 | (uint32_t)((w >> 32) % 40 + 107) << 23 | (uint32_t)(w & 0x7FFFFF);
    float bell = (float)(sum - 131070) / 65536, value = rb_float(0x7FC00000u);
    memcpy(&bits, &bell, 4);
    if (!strcmp(recipe, "bell")) value = bell;
    if (!strcmp(recipe, "bf16")) value = rb_float(bits & 0xFFFF0000u);
    if (!strcmp(recipe, "wide")) value = rb_float(wide);
    if (!strcmp(recipe, "dyadic")) value = (float)((w >> 32) % 9) - 4;
    if (!strcmp(recipe, "unit")) value = (float)(w >> 40) / 16777216;
    return value * rb_float((uint32_t)(exponent + 127) << 23);
}
/* --- end --- */
static inline char *rb_read(const char *directory, const char *name, uint64_t *size) { /* with a zero behind it */
    char path[4096], *text = NULL;
    FILE *file = snprintf(path, sizeof path, "%s/%s", directory, name) < (int)sizeof path ? fopen(path, "rb") : NULL;
    long end = file && !fseek(file, 0, SEEK_END) ? ftell(file) : -1;
    if (end >= 0) rewind(file), text = (char *)calloc((size_t)end + 1, 1);
    if (text) *size = fread(text, 1, (size_t)end, file);
    if (file) fclose(file);
    return text;
}
static inline int rb_open(rb_bundle *b, const char *directory) {
    uint64_t size = 0, length = 0;
    b->manifest = rb_read(directory, "manifest.json", &size);
    char *file = rb_read(directory, "tensors.safetensors", &size);
    if (!file || !b->manifest || !strstr(b->manifest, "\"refmoe-golden-bundle\"") || size < 8) return 0;
    memcpy(&length, file, 8);
    if (length > size - 8 || !(b->header = (char *)calloc((size_t)length + 1, 1))) return 0;
    return memcpy(b->header, file + 8, (size_t)length), b->payload = file + 8 + length, b->size = size - 8 - length, 1;
}
static inline const char *rb_after(const char *text, const char *before, const char *name, const char *behind) {
    char key[256];
    if (snprintf(key, sizeof key, "%s%s%s", before, name, behind) >= (int)sizeof key) return NULL;
    return text && (text = strstr(text, key)) ? text + strlen(key) : NULL;
}
static inline int rb_shape(const char *at, rb_tensor *t) { /* at: behind the bracket; 0 if a product could overflow */
    for (t->rank = 0, t->count = 1, at = at ? at + strspn(at, " \n") : ""; *at != ']'; at += strspn(at, ", \n")) {
        if (t->rank == 8 || *at < '0' || *at > '9' || strspn(at, "0123456789") > 9) return 0;
        t->shape[t->rank] = strtoull(at, NULL, 10), at += strspn(at, "0123456789");
        if ((t->count *= t->shape[t->rank++]) > UINT64_MAX >> 30) return 0;
    }
    return 1;
}
static inline int rb_find(const rb_bundle *b, const char *name, rb_tensor *t) {
    unsigned long long begin, end;
    const char *at = rb_after(b->header, "\"", name, "\":{\"data_offsets\":[");
    if (!at || sscanf(at, "%llu,%llu],\"dtype\":\"%15[A-Z0-9_]", &begin, &end, t->dtype) != 3) return 0;
    if (!rb_shape(rb_after(at, "\"", "shape", "\":["), t) || end > b->size) return 0;
    int width = strstr(t->dtype, "64") ? 8 : strstr(t->dtype, "32") ? 4 : strstr(t->dtype, "16") ? 2 : 1;
    return t->data = b->payload + begin, end - begin == t->count * (uint64_t)width;
}
static inline float *rb_floats(const rb_bundle *b, const char *name, rb_tensor *t) {
    int width = !rb_find(b, name, t) ? 0 : !strcmp(t->dtype, "BF16") ? 2 : !strcmp(t->dtype, "F32") ? 4 : 0;
    float *out = width ? (float *)calloc((size_t)t->count + 1, 4) : NULL;
    for (uint64_t i = 0; out && i < t->count; i++) /* a bf16 is the upper half of a float */
        memcpy((char *)(out + i) + 4 - width, t->data + (uint64_t)width * i, (size_t)width);
    return out;
}
static inline float *rb_input(const rb_bundle *b, const char *name, rb_tensor *t) {
    char leaf[128], recipe[16];
    unsigned long long seed; int exponent;
    const char *at = rb_after(b->manifest, "\"", name, "\": {"), *row = rb_after(b->manifest, "\"", "tensors", "\": [");
    const char *form = " \"exponent\": %d, \"name\": \"%127[^\"]\", \"recipe\": \"%15[^\"]\", \"seed\": %llu";
    if (!at || sscanf(at, form, &exponent, leaf, recipe, &seed) != 4 || exponent < -100 || exponent > 100) return NULL;
    if (!rb_shape(rb_after(rb_after(row, "\"name\": \"", name, "\","), "\"", "shape", "\": ["), t)) return NULL;
    float *out = (float *)calloc((size_t)t->count + 1, 4);
    for (uint64_t i = 0, key = rb_key(seed, leaf); out && i < t->count; i++)
        out[i] = rb_element(recipe, key, i, exponent);
    return out && out[0] == out[0] ? out : NULL;
}
