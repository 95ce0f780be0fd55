// Powers of two as the special function unit makes them (relative error 2^-22; denormal results are
// zero), and what turns an exponential into one.
#pragma once

namespace sala {

constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace sala
