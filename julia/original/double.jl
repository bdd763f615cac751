# The first program of "Composability in Julia: Implementing Deep Equilibrium Models via Neural
# ODEs" (julialang.org, October 2021), which learns y = 2x, written for today's Lux and SciML. It
# uses nothing of PyDEQ.
#
#     julia double.jl INPUT OUTPUT
#
# Both are NPZ files. The shapes are numpy's, of which those here are the reverse. INPUT holds, in one
# floating-point type,
#
#     cell.0.weight (1, 5), cell.0.bias (5,), cell.1.weight (5, 1), cell.1.bias (1,)
#     x (n, 1), target (n, 1)        the data, all in one batch
#     x_test (m, 1)                  what is predicted at the end
#     learning_rate, abstol, reltol, ode_abstol, ode_reltol    numbers of type f8
#     max_steps, n_steps                                       numbers of type i8
#
# OUTPUT gets the trained weights under the same names, and
#
#     loss (n_steps,)       before each step
#     n_evals (n_steps,)    right-hand sides that its solve took
#     failed (n_steps,)     1 where its solve did not reach a steady state
#     output (m, 1)         the predictions for x_test
#     seconds (3,)          the first step, which compiles; the other steps; the prediction

using Lux: Chain, Dense
using NPZ: npzread, npzwrite
using Optimisers: Optimisers, Adam
using OrdinaryDiffEqTsit5: Tsit5
using SciMLBase: SteadyStateProblem, solve, successful_retcode
using SciMLSensitivity: SteadyStateAdjoint, ZygoteVJP
using SteadyStateDiffEq: DynamicSS
using Zygote: Zygote

const model = Chain(Dense(1 => 5), Dense(5 => 1))
const st = (layer_1 = NamedTuple(), layer_2 = NamedTuple())

cell(v, ps) = first(model(v, ps, st))

# The post's program captures x; as it has no encoder, that makes no difference.
function equilibrium(ps, x, settings)
    function dudt(u, p, t)
        y = cell(u .+ p.x, p.ps)
        return reshape(vec(y) .- vec(u), size(u))  # a matrix state needs it for its pullback
    end
    prob = Zygote.ignore(() -> SteadyStateProblem(dudt, cell(x, ps), (; ps, x)))
    return solve(
        prob, DynamicSS(Tsit5()); p = (; ps, x), settings...,
        sensealg = SteadyStateAdjoint(; autojacvec = ZygoteVJP()),
    )
end

function main(input, output)
    given = npzread(input)
    number(name) = only(given[name])
    ps = (
        layer_1 = (weight = given["cell.0.weight"], bias = given["cell.0.bias"]),
        layer_2 = (weight = given["cell.1.weight"], bias = given["cell.1.bias"]),
    )
    T = eltype(ps.layer_1.weight)
    settings = (;
        abstol = T(number("abstol")), reltol = T(number("reltol")),
        odesolve_kwargs = (;
            abstol = T(number("ode_abstol")), reltol = T(number("ode_reltol")),
            maxiters = number("max_steps"), save_everystep = false,
        ),
    )
    x, target, n_steps = given["x"], given["target"], number("n_steps")
    losses, n_evals, failed = zeros(n_steps), zeros(Int, n_steps), zeros(Int, n_steps)
    state = Optimisers.setup(Adam(number("learning_rate")), ps)
    seconds = zeros(3)
    for step in 1:n_steps
        seconds[min(step, 2)] += @elapsed begin
            losses[step], grads = Zygote.withgradient(ps) do ps
                sol = equilibrium(ps, x, settings)
                Zygote.ignore() do
                    n_evals[step] = sol.stats.nf
                    failed[step] = !successful_retcode(sol)
                end
                sum(abs2, sol.u .- target)
            end
            state, ps = Optimisers.update(state, ps, only(grads))
        end
    end
    seconds[3] = @elapsed predicted = equilibrium(ps, given["x_test"], settings).u
    npzwrite(
        output,
        Dict(
            "cell.0.weight" => ps.layer_1.weight, "cell.0.bias" => ps.layer_1.bias,
            "cell.1.weight" => ps.layer_2.weight, "cell.1.bias" => ps.layer_2.bias,
            "loss" => losses, "n_evals" => n_evals, "failed" => failed, "output" => predicted,
            "seconds" => seconds,
        ),
    )
    return nothing
end

abspath(PROGRAM_FILE) == @__FILE__() && main(ARGS...)
