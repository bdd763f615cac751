# What a system image has compiled code for, beside what PyDEQ has: see src/precompile.jl.

using PyDEQ

for T in (Float32, Float64)
    PyDEQ.fit_and_predict(PyDEQ.small_session(T))
    PyDEQ.fit_and_predict(
        PyDEQ.small_session(T; stability = "contractive", solver = "anderson", loss = "log_loss")
    )
end
