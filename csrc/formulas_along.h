/* formulas_along.h: the formulas of formulas_template.h along arrays, whole vectors at a time; and their table. */

/* The last lanes of a range go through buffers: nothing beyond an array is read or written. */
struct buffer {
    float in[MAX_OPERANDS][LANES], out[MAX_RESULTS][LANES];
};

/* A range's arrays, absent ones NULL, and where its next lanes are. */
struct place {
    const float *in[MAX_OPERANDS];
    float *out[MAX_RESULTS];
    int64_t at, count;
};

INLINE struct place place_at(const struct formula_call *c, int64_t at)
{
    struct place p = {.at = at, .count = LANES};
    for (int i = 0; i < MAX_OPERANDS; i++)
        p.in[i] = c->in[i] ? c->in[i] + at : NULL;
    for (int i = 0; i < MAX_RESULTS; i++)
        p.out[i] = c->out[i] ? c->out[i] + at : NULL;
    return p;
}

INLINE struct place fill(struct buffer *buffer, struct place p, int64_t count)
{
    memset(buffer, 0, sizeof *buffer);
    for (int i = 0; i < MAX_OPERANDS; i++)
        if (p.in[i]) {
            memcpy(buffer->in[i], p.in[i], (size_t)count * sizeof(float));
            p.in[i] = buffer->in[i];
        }
    for (int i = 0; i < MAX_RESULTS; i++)
        if (p.out[i])
            p.out[i] = buffer->out[i];
    p.count = count;
    return p;
}

INLINE void note_lanes(uint32_t bits, refmoe_open *open, int64_t at, int64_t count)
{
    for (int64_t lane = 0; bits && lane < count; lane++, bits >>= 1)
        if (bits & 1)
            note_open(open, at + lane);
}

INLINE void finish(struct bounded y, const int narrow, const struct formula_call *c, const struct place *p, int result)
{
    uint32_t bits = settle(y, narrow, c->format, p->out[result]);
    if (__builtin_expect(bits != 0, 0))
        note_lanes(bits, c->open[result], p->at, p->count);
}

INLINE struct operands enter_at(const int general, const float *gate, const float *up, const refmoe_activation *act)
{
    struct operands o = enter(general, WIDEN(gate), up ? WIDEN(up) : spread(1.0), act);
    if (!up)
        o.u = spread(1.0);
    return o;
}

INLINE void gated_lanes(const int function, const int general, const int narrow, const struct formula_call *c,
                        const refmoe_activation *act, const struct place *p)
{
    struct operands o = enter_at(general, p->in[0], p->in[1], act);
    if (function >= GELU)
        finish(curved_forward(function, o, p->in[1] != NULL, act), narrow, c, p, 0);
    else
        finish(forward(function, general, o, p->in[1] != NULL, act->alpha), narrow, c, p, 0);
}

INLINE void backward_lanes(const int function, const int general, const int narrow, const struct formula_call *c,
                           const refmoe_activation *act, const struct place *p)
{
    struct operands o = enter_at(general, p->in[1], p->in[2], act);
    struct gradients g;
    if (function >= GELU)
        g = curved_gradients(function, WIDEN(p->in[0]), o, p->in[2] != NULL, act);
    else
        g = gradients(function, general, WIDEN(p->in[0]), o, p->in[2] != NULL, act->alpha);
    finish(g.gate, narrow, c, p, 0);
    if (p->in[2])
        finish(g.up, narrow, c, p, 1);
}

#define ALONG(lanes, function, general, narrow)                                                                       \
    {                                                                                                                 \
        const refmoe_activation act = c->act;                                                                         \
        int64_t at = begin;                                                                                           \
        for (; at + LANES <= end; at += LANES) {                                                                      \
            struct place p = place_at(c, at);                                                                         \
            lanes(function, general, narrow, c, &act, &p);                                                            \
        }                                                                                                             \
        if (at < end) {                                                                                               \
            struct buffer buffer;                                                                                     \
            struct place p = fill(&buffer, place_at(c, at), end - at);                                                \
            lanes(function, general, narrow, c, &act, &p);                                                            \
            for (int i = 0; i < MAX_RESULTS; i++)                                                                     \
                if (c->out[i])                                                                                        \
                    memcpy(c->out[i] + at, buffer.out[i], (size_t)(end - at) * sizeof(float));                        \
        }                                                                                                             \
    }
#define DEFINE(name, lanes, function, general)                                                                        \
    static TARGET void name(const struct formula_call *c, int64_t begin, int64_t end)                                 \
    {                                                                                                                 \
        if (c->narrow)                                                                                                \
            ALONG(lanes, function, general, 1)                                                                        \
        else                                                                                                          \
            ALONG(lanes, function, general, 0)                                                                        \
    }
#define DEFINE_BOTH(name, function)                                                                                   \
    DEFINE(name##_plain, gated_lanes, function, 0)                                                                    \
    DEFINE(name##_general, gated_lanes, function, 1)                                                                  \
    DEFINE(name##_backward_plain, backward_lanes, function, 0)                                                        \
    DEFINE(name##_backward_general, backward_lanes, function, 1)
/* Curves read every parameter each time. */
#define DEFINE_ONE(name, function)                                                                                    \
    DEFINE(name##_general, gated_lanes, function, 1)                                                                  \
    DEFINE(name##_backward_general, backward_lanes, function, 1)

DEFINE_BOTH(silu, SILU)
DEFINE_BOTH(gelu_tanh, GELU_TANH)
DEFINE_BOTH(relu, RELU)
DEFINE_BOTH(relu2, RELU2)
DEFINE_BOTH(sigmoid, SIGMOID)
DEFINE_ONE(gelu, GELU)
DEFINE_ONE(sqrt_softplus, SQRT_SOFTPLUS)
DEFINE_ONE(softcap, SOFTCAP)
DEFINE_ONE(capped_silu, CAPPED_SILU)

/* ---- rows times a weight ---- */

INLINE void scaled_lanes(const int narrow, const struct formula_call *c, vd weight, const struct place *p)
{
    vd v = weight * WIDEN(p->in[1]);
    finish(exactly(v, poison(v)), narrow, c, p, 0);
}

/* Elements begin .. end of one row. */
INLINE void scale(const int narrow, const struct formula_call *c, vd weight, int64_t begin, int64_t end)
{
    int64_t at = begin;
    for (; at + LANES <= end; at += LANES) {
        struct place p = {.in = {NULL, c->in[1] + at}, .out = {c->out[0] + at}, .at = at, .count = LANES};
        scaled_lanes(narrow, c, weight, &p);
    }
    if (at < end) {
        struct buffer buffer;
        struct place rest = {.in = {NULL, c->in[1] + at}, .out = {c->out[0] + at}, .at = at};
        rest = fill(&buffer, rest, end - at);
        scaled_lanes(narrow, c, weight, &rest);
        memcpy(c->out[0] + at, buffer.out[0], (size_t)(end - at) * sizeof(float));
    }
}

static TARGET void scaled_rows(const struct formula_call *c, int64_t begin, int64_t end)
{
    for (int64_t at = begin, next; at < end; at = next) {
        int64_t row = at / c->length, stop = (row + 1) * c->length;
        next = stop < end ? stop : end;
        if (c->narrow)
            scale(1, c, spread(c->in[0][row]), at, next);
        else
            scale(0, c, spread(c->in[0][row]), at, next);
    }
}

#define ACTIVATIONS_OF(suffix)                                                                                        \
    {                                                                                                                 \
        [REFMOE_SILU] = {silu##suffix##_plain, silu##suffix##_general},                                               \
        [REFMOE_GELU_TANH] = {gelu_tanh##suffix##_plain, gelu_tanh##suffix##_general},                                \
        [REFMOE_RELU] = {relu##suffix##_plain, relu##suffix##_general},                                               \
        [REFMOE_RELU2] = {relu2##suffix##_plain, relu2##suffix##_general},                                            \
        [REFMOE_SIGMOID] = {sigmoid##suffix##_plain, sigmoid##suffix##_general},                                      \
        [REFMOE_GELU] = {gelu##suffix##_general, gelu##suffix##_general},                                             \
        [REFMOE_SQRT_SOFTPLUS] = {sqrt_softplus##suffix##_general, sqrt_softplus##suffix##_general},                  \
        [REFMOE_SOFTCAP] = {softcap##suffix##_general, softcap##suffix##_general},                                    \
        [CAPPED_SILU] = {capped_silu##suffix##_general, capped_silu##suffix##_general}                                \
    }

const struct formulas FORMULAS = {
    .kernel = KERNEL,
    .gated = ACTIVATIONS_OF(),
    .gated_backward = ACTIVATIONS_OF(_backward),
    .scaled_rows = scaled_rows,
    .softmax = softmax_rows,
    .softmax_backward = softmax_backward_rows,
    .log_sum_exp = log_sum_exp_rows,
};
