// A mixture-of-experts layer in plain C++11, from the recipes to y, for `refmoe compare`. No dependency.
//
// layer BUNDLE MINE.safetensors                 the inputs and some stages, under the bundle's names
// layer values RECIPE NAME SEED EXPONENT ...    the bits of four elements of each
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "refmoe_bundle.h"  // the reader, and the recipe: its C is C++ too

using Sizes = std::vector<std::size_t>;
struct Tensor {
    Sizes shape;
    std::vector<float> data;
    explicit Tensor(Sizes sizes = {}) : shape(sizes), data(1) { for (auto n : sizes) data.resize(data.size() * n); }
    float *row(std::size_t i) { return data.data() + i * shape.back(); }
};
using Tensors = std::map<std::string, Tensor>;

Tensors inputs(const rb_bundle &bundle) {
    Tensors made;
    for (const char *name : {"x", "d_y", "params.w_router", "params.w_gate", "params.w_up", "params.w_down"}) {
        rb_tensor t;
        float *data = rb_input(&bundle, name, &t);
        if (!data) throw std::runtime_error(std::string(name) + " comes by no recipe; leave --inputs out");
        Tensor &tensor = made[name] = Tensor(Sizes(t.shape, t.shape + t.rank));
        std::copy(data, data + t.count, tensor.data.begin());
        std::free(data);
    }
    return made;
}

// Sums in float; the softmax is over the logits of the chosen experts, as a renormalised one is.
void layer(Tensors &t, std::size_t top_k) {
    Tensor &x = t["x"], &router = t["params.w_router"], &gate = t["params.w_gate"];
    Tensor &up = t["params.w_up"], &down = t["params.w_down"];
    const std::size_t T = x.shape[0], D = x.shape[1], E = gate.shape[0], F = gate.shape[1];
    Tensor logits({T, E}), weights({T, top_k}), y({T, D});
    const auto dot = [](const float *a, float *b, std::size_t n) { return std::inner_product(a, a + n, b, 0.0f); };
    for (std::size_t token = 0; token < T; token++) {
        float *l = logits.row(token), *w = weights.row(token), *out = y.row(token), sum = 0;
        for (std::size_t e = 0; e < E; e++) l[e] = dot(x.row(token), router.row(e), D);
        Sizes best(E);
        std::iota(best.begin(), best.end(), 0);
        std::stable_sort(best.begin(), best.end(), [l](std::size_t a, std::size_t b) { return l[a] > l[b]; });
        for (std::size_t k = 0; k < top_k; k++) sum += w[k] = std::exp(l[best[k]] - l[best[0]]);
        for (std::size_t k = 0; k < top_k; k++) {
            std::vector<float> hidden(F);
            for (std::size_t f = 0; f < F; f++) {
                const float g = dot(x.row(token), gate.row(best[k] * F + f), D);
                const float u = dot(x.row(token), up.row(best[k] * F + f), D);
                hidden[f] = g / (1 + std::exp(-g)) * u;
            }
            w[k] /= sum;
            for (std::size_t d = 0; d < D; d++) out[d] += w[k] * dot(hidden.data(), down.row(best[k] * D + d), F);
        }
    }
    t["routing.logits"] = logits, t["routing.topk_weights"] = weights, t["y"] = y;
}

void write(const std::string &path, const Tensors &tensors) {  // safetensors; a map is in the order of its names
    std::string header, payload;
    for (const auto &item : tensors) {
        std::string sizes;
        for (auto size : item.second.shape) sizes += (sizes.empty() ? "" : ",") + std::to_string(size);
        header += (header.empty() ? "{\"" : ",\"") + item.first + "\":{\"dtype\":\"F32\",\"shape\":[" + sizes
            + "],\"data_offsets\":[" + std::to_string(payload.size());
        payload.append(reinterpret_cast<const char *>(item.second.data.data()), 4 * item.second.data.size());
        header += "," + std::to_string(payload.size()) + "]}";
    }
    const std::uint64_t length = (header += "}").size();
    std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char *>(&length), 8) << header << payload;
}

int main(int argc, char **argv) try {
    if (argc > 1 && std::string(argv[1]) == "values") {
        for (int i = 0; i < 4 * ((argc - 2) / 4); i++) {
            char **of = argv + 2 + i / 4 * 4;
            const float value = rb_element(of[0], rb_key(std::stoull(of[2]), of[1]), i % 4, std::stoi(of[3]));
            std::uint32_t bits;
            memcpy(&bits, &value, 4), printf("%08x%c", static_cast<unsigned>(bits), i % 4 < 3 ? ' ' : '\n');
        }
        return 0;
    }
    rb_bundle bundle;
    if (argc != 3 || !rb_open(&bundle, argv[1])) throw std::runtime_error("expected BUNDLE MINE.safetensors");
    Tensors tensors = inputs(bundle);
    layer(tensors, std::stoul(rb_after(bundle.manifest, "\"", "top_k", "\": ")));
    write(argv[2], tensors);
} catch (const std::exception &error) {
    std::cerr << "layer: " << error.what() << '\n';
    return 2;
}
