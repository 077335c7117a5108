/* Is my grouped product right? Judged here, without Python, by the derived bound of spec 7.12, on the golden rows.

   verify BUNDLE              inputs bit for bit against the stored ones, three products within their bounds
   verify BUNDLE inputs NAME  the bytes of one input, made by its recipe
   verify values RECIPE NAME SEED EXPONENT ...   the bits of four elements of each */
#include "refmoe_bundle.h"

/* Your kernel: out[n, m] = sum_k rows[n, k] * w[e, m, k] for the rows offsets[e] .. offsets[e + 1] - 1 of expert e. */
static void my_grouped_matmul(const float *rows, const float *w, const int64_t *offsets, uint64_t E, uint64_t M,
                              uint64_t K, float *out) {
    for (uint64_t e = 0; e < E; e++)
        for (int64_t n = offsets[e]; n < offsets[e + 1]; n++)
            for (uint64_t m = 0; m < M; m++) {
                float sum = 0;
                for (uint64_t k = 0; k < K; k++) sum += rows[(uint64_t)n * K + k] * w[(e * M + m) * K + k];
                out[(uint64_t)n * M + m] = sum;
            }
}

static int failures;

static void report(const char *name, uint64_t bad, double worst) {
    printf("%-20s %s, %.3g of the bound\n", name, bad ? "WRONG" : "passed", worst);
    failures += bad != 0;
}

static void *need(const char *name, void *found) {
    if (found) return found;
    fprintf(stderr, "verify: %s is not in the bundle as it must be; make one by `refmoe golden --config`\n", name);
    exit(2);
}

/* The bits of what the recipe makes and of what the bundle stores. */
static void check_input(const rb_bundle *b, const char *name) {
    rb_tensor made, stored;
    float *mine = need(name, rb_input(b, name, &made)), *want = need(name, rb_floats(b, name, &stored));
    int same = made.count == stored.count && !memcmp(mine, want, made.count * sizeof *mine);
    printf("%-20s %s\n", name, same ? "the same bits" : "WRONG: other bits");
    failures += !same, free(mine), free(want);
}

/* |mine - want| <= kappa S + u |want| + eta: S = sum_k |a_k b_k|, kappa = K 2^-24 / (1 - K 2^-24) for sums in float. */
static void check_product(const rb_bundle *b, const char *in, const char *weight, const char *out) {
    rb_tensor r = {0}, v = {0}, t, index;
    float *rows = need(in, rb_floats(b, in, &r)), *w = need(weight, rb_input(b, weight, &v));
    float *want = need(out, rb_floats(b, out, &t));
    need("plan.expert_offsets", rb_find(b, "plan.expert_offsets", &index) ? &index : NULL);
    uint64_t E = v.shape[0], M = v.shape[1], K = v.shape[2], N = r.shape[0], bad = 0;
    int64_t *offsets = need("memory", calloc(index.count + 1, sizeof *offsets));
    memcpy(offsets, index.data, index.count * sizeof *offsets);
    int fits = index.count == E + 1 && offsets[0] == 0 && (uint64_t)offsets[E] == N;
    fits = fits && r.count == N * K && t.count == N * M;
    for (uint64_t e = 0; fits && e < E; e++) fits = offsets[e] <= offsets[e + 1];
    need("a product's shapes", fits ? &fits : NULL);
    float *mine = need("memory", calloc(N * M + 1, sizeof *mine));
    my_grouped_matmul(rows, w, offsets, E, M, K, mine);
    int narrow = !strcmp(t.dtype, "BF16");
    double gamma = (double)K / 16777216, kappa = gamma / (1 - gamma), u = narrow ? 0x1p-8 : 0x1p-24, worst = 0;
    double eta = narrow ? 0x1p-134 : 0x1p-150;
    for (uint64_t e = 0; e < E; e++)
        for (uint64_t n = (uint64_t)offsets[e]; n < (uint64_t)offsets[e + 1]; n++)
            for (uint64_t m = 0; m < M; m++) {
                double S = 0, off = (double)mine[n * M + m] - want[n * M + m], size = want[n * M + m];
                for (uint64_t k = 0; k < K; k++) {
                    double term = (double)rows[n * K + k] * w[(e * M + m) * K + k];
                    S += term < 0 ? -term : term;
                }
                double ratio = (off < 0 ? -off : off) / (kappa * S + u * (size < 0 ? -size : size) + eta);
                bad += !(ratio <= 1), worst = ratio > worst ? ratio : worst; /* a NaN is wrong */
            }
    report(out, bad, worst);
    free(rows), free(w), free(want), free(offsets), free(mine);
}

int main(int argc, char **argv) {
    rb_bundle b;
    rb_tensor t;
    if (argc > 1 && !strcmp(argv[1], "values")) {
        for (int i = 0; i < 4 * ((argc - 2) / 4); i++) {
            char **of = argv + 2 + i / 4 * 4;
            float value = rb_element(of[0], rb_key(strtoull(of[2], NULL, 10), of[1]), (uint64_t)i % 4, atoi(of[3]));
            uint32_t bits;
            memcpy(&bits, &value, 4), printf("%08x%c", (unsigned)bits, i % 4 < 3 ? ' ' : '\n');
        }
        return 0;
    }
    if (argc < 2 || !rb_open(&b, argv[1]))
        return fprintf(stderr, "verify: expected a directory that `refmoe golden` made; make one\n"), 2;
    if (argc == 4 && !strcmp(argv[2], "inputs")) {
        float *made = need(argv[3], rb_input(&b, argv[3], &t));
        return fwrite(made, 4, t.count, stdout) != t.count;
    }
    check_input(&b, "x"), check_input(&b, "d_y");
    check_product(&b, "experts.x_rows", "params.w_gate", "experts.gate_rows");
    check_product(&b, "experts.x_rows", "params.w_up", "experts.up_rows");
    check_product(&b, "experts.hidden_rows", "params.w_down", "experts.y_rows");
    return failures != 0;
}
