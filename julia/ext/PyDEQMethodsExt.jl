# Methods for the neural ODE, of packages that are loaded when one is asked for.
module PyDEQMethodsExt

using OrdinaryDiffEqAdamsBashforthMoulton: VCAB3
using OrdinaryDiffEqLowOrderRK: BS3, DP5
using OrdinaryDiffEqStabilizedRK: ROCK4
using OrdinaryDiffEqTsit5: Tsit5
using PyDEQ: PyDEQ

PyDEQ.ode_algorithm(::Val{:tsit5}) = Tsit5()
PyDEQ.ode_algorithm(::Val{:bs3}) = BS3()
PyDEQ.ode_algorithm(::Val{:dp5}) = DP5()
PyDEQ.ode_algorithm(::Val{:vcab3}) = VCAB3()
PyDEQ.ode_algorithm(::Val{:rock4}) = ROCK4()

end
