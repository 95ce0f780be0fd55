// Lightning attention as its definition reads: one state per document and head, one token at a
// time.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <vector>

#include "kernels/check.h"
#include "kernels/twins/attention.h"

namespace sala {

namespace {

at::Tensor to_double(const at::Tensor& x) {
  return x.defined() ? x.detach().to(at::kDouble).contiguous() : x;
}

// (HS x HS) matrices in a row-major vector.
using Matrix = std::vector<double>;

Matrix row_of(const at::Tensor& states, int64_t d, int64_t h, int64_t HS) {
  Matrix s(HS * HS, 0.0);
  if (!states.defined()) return s;
  const double* from = states.data_ptr<double>() + (d * states.size(1) + h) * HS * HS;
  s.assign(from, from + HS * HS);
  return s;
}

void put_row(const Matrix& s, at::Tensor& states, int64_t d, int64_t h) {
  double* to =
      states.data_ptr<double>() + (d * states.size(1) + h) * static_cast<int64_t>(s.size());
  std::copy(s.begin(), s.end(), to);
}

// S <- lambda S + k v^T
void advance(Matrix& s, double lambda, const double* k, const double* v, int64_t HS) {
  for (int64_t i = 0; i < HS; ++i) {
    for (int64_t j = 0; j < HS; ++j) s[i * HS + j] = lambda * s[i * HS + j] + k[i] * v[j];
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> lightning_forward_twin(const at::Tensor& q, const at::Tensor& k,
                                                          const at::Tensor& v,
                                                          const at::Tensor& slopes,
                                                          const Documents& docs, double scale,
                                                          const at::Tensor& initial_state) {
  const int64_t NH = q.size(1), HS = q.size(2);
  const at::Tensor q64 = to_double(q), k64 = to_double(k), v64 = to_double(v);
  const at::Tensor initial = to_double(initial_state);
  at::Tensor o = at::zeros(q.sizes(), at::kDouble);
  at::Tensor final_state = at::zeros({docs.count(), NH, HS, HS}, at::kDouble);
  // Heads and documents know nothing of each other.
  at::parallel_for(0, docs.count() * NH, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t d = n / NH, h = n % NH;
      const double lambda = std::exp(-slopes.data_ptr<double>()[h]);
      Matrix s = row_of(initial, d, h, HS);
      for (int64_t t = docs.offsets[d]; t < docs.offsets[d + 1]; ++t) {
        const int64_t at = (t * NH + h) * HS;
        advance(s, lambda, k64.data_ptr<double>() + at, v64.data_ptr<double>() + at, HS);
        const double* qt = q64.data_ptr<double>() + at;
        double* ot = o.data_ptr<double>() + at;
        for (int64_t i = 0; i < HS; ++i) {
          for (int64_t j = 0; j < HS; ++j) ot[j] += scale * s[i * HS + j] * qt[i];
        }
      }
      put_row(s, final_state, d, h);
    }
  });
  return {o.to(q.scalar_type()), final_state.to(accumulate_type(q))};
}

// With g = scale * d_o and dS the gradient of the state after token t:
//   dS_t = lambda dS_{t+1} + q_t g_t^T;  dq_t = S_t g_t;  dk_t = dS_t v_t;  dv_t = dS_t^T k_t.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> lightning_backward_twin(
    const at::Tensor& d_o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& slopes, const Documents& docs, double scale, const at::Tensor& initial_state,
    const at::Tensor& d_final_state) {
  const int64_t NH = q.size(1), HS = q.size(2);
  const at::Tensor g64 = to_double(d_o) * scale;
  const at::Tensor q64 = to_double(q), k64 = to_double(k), v64 = to_double(v);
  const at::Tensor initial = to_double(initial_state), d_final = to_double(d_final_state);
  at::Tensor dq = at::zeros(q.sizes(), at::kDouble), dk = at::zeros(q.sizes(), at::kDouble);
  at::Tensor dv = at::zeros(q.sizes(), at::kDouble);
  at::Tensor d_initial = at::zeros({docs.count(), NH, HS, HS}, at::kDouble);
  const auto row = [&](const at::Tensor& x, int64_t t, int64_t h) {
    return x.data_ptr<double>() + (t * NH + h) * HS;
  };
  // Heads and documents know nothing of each other.
  at::parallel_for(0, docs.count() * NH, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t d = n / NH, h = n % NH;
      const double lambda = std::exp(-slopes.data_ptr<double>()[h]);
      Matrix s = row_of(initial, d, h, HS);
      for (int64_t t = docs.offsets[d]; t < docs.offsets[d + 1]; ++t) {
        advance(s, lambda, row(k64, t, h), row(v64, t, h), HS);
        const double* g = row(g64, t, h);
        double* dq_t = row(dq, t, h);
        for (int64_t i = 0; i < HS; ++i) {
          for (int64_t j = 0; j < HS; ++j) dq_t[i] += s[i * HS + j] * g[j];
        }
      }
      Matrix ds = row_of(d_final, d, h, HS);
      for (int64_t t = docs.offsets[d + 1] - 1; t >= docs.offsets[d]; --t) {
        advance(ds, 1.0, row(q64, t, h), row(g64, t, h), HS);
        const double *k_t = row(k64, t, h), *v_t = row(v64, t, h);
        double *dk_t = row(dk, t, h), *dv_t = row(dv, t, h);
        for (int64_t i = 0; i < HS; ++i) {
          for (int64_t j = 0; j < HS; ++j) {
            dk_t[i] += ds[i * HS + j] * v_t[j];
            dv_t[j] += ds[i * HS + j] * k_t[i];
          }
        }
        for (double& x : ds) x *= lambda;
      }
      put_row(ds, d_initial, d, h);
    }
  });
  const at::ScalarType dtype = q.scalar_type();
  return {dq.to(dtype), dk.to(dtype), dv.to(dtype), d_initial.to(accumulate_type(q))};
}

at::Tensor lightning_end_state_twin(const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& slopes, int64_t first_token) {
  const int64_t T = k.size(0), NH = k.size(1), HS = k.size(2);
  const at::Tensor k64 = to_double(k), v64 = to_double(v);
  at::Tensor state = at::zeros({1, NH, HS, HS}, at::kDouble);
  for (int64_t h = 0; h < NH; ++h) {
    const double lambda = std::exp(-slopes.data_ptr<double>()[h]);
    Matrix s(HS * HS, 0.0);
    for (int64_t t = first_token; t < T; ++t) {
      const int64_t at = (t * NH + h) * HS;
      advance(s, lambda, k64.data_ptr<double>() + at, v64.data_ptr<double>() + at, HS);
    }
    put_row(s, state, 0, h);
  }
  return state[0].to(accumulate_type(k));
}

at::Tensor lightning_start_gradient_twin(const at::Tensor& q, const at::Tensor& d_o,
                                         const at::Tensor& slopes, int64_t end_token,
                                         double scale) {
  const int64_t NH = q.size(1), HS = q.size(2);
  const at::Tensor q64 = to_double(q), g64 = to_double(d_o) * scale;
  at::Tensor gradient = at::zeros({1, NH, HS, HS}, at::kDouble);
  for (int64_t h = 0; h < NH; ++h) {
    const double lambda = std::exp(-slopes.data_ptr<double>()[h]);
    Matrix ds(HS * HS, 0.0);
    for (int64_t t = end_token - 1; t >= 0; --t) {
      const int64_t at = (t * NH + h) * HS;
      advance(ds, 1.0, q64.data_ptr<double>() + at, g64.data_ptr<double>() + at, HS);
      for (double& x : ds) x *= lambda;
    }
    put_row(ds, gradient, 0, h);
  }
  return gradient[0].to(accumulate_type(q));
}

}  // namespace sala
