// The rules that an object is compiled with, as its kernels know them: a number for each, and a branch to it.
#pragma once

#define FUSEDOPT_NUMBER(R) k##R,
#define FUSEDOPT_CASE(R) \
  case k##R:             \
    return f(R());
#define FUSEDOPT_LINKED(Name)                           \
  struct Name {                                         \
    enum { FUSEDOPT_RULES(FUSEDOPT_NUMBER) };           \
                                                        \
    template <class F>                                  \
    __device__ static void with(int number, F&& f) {    \
      switch (number) { FUSEDOPT_RULES(FUSEDOPT_CASE) } \
    }                                                   \
  };
