# What is compiled of PythonCall for the first fit and the first prediction from Python: its conversions of
# arguments, which take two seconds otherwise.
#
# A package of its own, beside PyDEQ's environment: precompiling it starts a Python inside Julia, which is
# not possible everywhere. `pydeq julia install` tries; a start loads it if it is precompiled.
module PyDEQCalls

using PrecompileTools: @compile_workload
using PyDEQ: PyDEQ
using PythonCall: pyconvert, pyjl

"""Call a function as Python does."""
call(f, args...) = pyconvert(Any, pyjl(f)(args...))

@compile_workload begin
    call(tuple, "text", 1, 1.0, true, nothing)
    session = PyDEQ.small_session(Float32; call, stability = "contractive", solver = "anderson", loss = "log_loss")
    PyDEQ.fit_and_predict(session; call)
    call(PyDEQ.has_cuda)
end

end
