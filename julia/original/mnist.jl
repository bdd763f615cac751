# The MNIST program of the two posts that pydeq starts from ("Composability in Julia: Implementing
# Deep Equilibrium Models via Neural ODEs", julialang.org, October 2021; J. Pascal, "Deep
# Equilibrium Models via Neural ODEs"), written for today's Lux and SciML. It uses nothing of PyDEQ.
#
#     julia mnist.jl INPUT OUTPUT
#
# Both are NPZ files. The shapes are numpy's, of which those here are the reverse. INPUT holds, in one
# floating-point type,
#
#     encoder.weight (784, 100), encoder.bias (100,)
#     cell.0.weight (100, 500), cell.0.bias (500,), cell.1.weight (500, 100), cell.1.bias (100,)
#     decoder.weight (100, 10), decoder.bias (10,)
#     x (n, 784), target (n, 10)     the training data, one-hot classes (other widths will do too)
#     x_test (m, 784)                what is predicted at the end
#     learning_rate, abstol, reltol, ode_abstol, ode_reltol    numbers of type f8
#     max_steps, batch_size                                    numbers of type i8
#     train_encoder                                            i8, the switch TRAIN_ENCODER below
#     order (n_seen,)                                          i8, sample indices from 0 on: the
#                                                              batches are its consecutive runs
#
# OUTPUT gets the trained weights under the same names, and
#
#     loss (n_batches,)       before each step
#     n_evals (n_batches,)    right-hand sides that its solve took
#     failed (n_batches,)     1 where its solve did not reach a steady state (the post's program
#                             does not look; the step is taken all the same)
#     output (m, 10)          the logits for x_test, solved in batches of batch_size
#     n_evals_test, failed_test (number of test batches,)
#     seconds (3,)            the first step, which compiles; the other steps; the prediction

using Lux: Chain, Dense
using NPZ: npzread, npzwrite
using Optimisers: Optimisers, Adam
using OrdinaryDiffEqTsit5: Tsit5
using SciMLBase: SteadyStateProblem, solve, successful_retcode
using SciMLSensitivity: SteadyStateAdjoint, ZygoteVJP
using SteadyStateDiffEq: DynamicSS
using Zygote: Zygote

const layer_states = (layer_1 = NamedTuple(), layer_2 = NamedTuple())

struct Program
    encoder::Any
    cell::Any
    decoder::Any
    train_encoder::Bool
    settings::Any
end

apply_cell(program, v, ps) = first(program.cell(v, ps, layer_states))

# TRAIN_ENCODER: the steady-state adjoint gives a gradient to the problem's parameters alone. The
# post's program captures h in the closure, so that its encoder never trains.
function equilibrium(program, ps, h)
    minus(y, u) = reshape(vec(y) .- vec(u), size(u))  # a matrix state needs it for its pullback
    sensealg = SteadyStateAdjoint(; autojacvec = ZygoteVJP())
    if program.train_encoder
        free = (u, p, t) -> minus(apply_cell(program, u .+ p.h, p.ps), u)
        prob = Zygote.ignore(() -> SteadyStateProblem(free, apply_cell(program, h, ps), (; ps, h)))
        return solve(prob, DynamicSS(Tsit5()); p = (; ps, h), sensealg, program.settings...)
    end
    captured = (u, p, t) -> minus(apply_cell(program, u .+ h, p), u)
    prob = Zygote.ignore(() -> SteadyStateProblem(captured, apply_cell(program, h, ps), ps))
    return solve(prob, DynamicSS(Tsit5()); p = ps, sensealg, program.settings...)
end

function forward(program, ps, x, seen)
    h = first(program.encoder(x, ps.encoder, NamedTuple()))
    sol = equilibrium(program, ps.cell, h)
    Zygote.ignore(() -> push!(seen, (sol.stats.nf, !successful_retcode(sol))))
    return first(program.decoder(sol.u, ps.decoder, NamedTuple()))
end

function cross_entropy(logits, target)
    shifted = logits .- Zygote.ignore(() -> maximum(logits; dims = 1))
    log_softmax = shifted .- log.(sum(exp.(shifted); dims = 1))
    return -sum(target .* log_softmax) / size(target, 2)
end

function read_weights(given)
    layer(name) = (weight = given["$name.weight"], bias = given["$name.bias"])
    return (
        encoder = layer("encoder"),
        cell = (layer_1 = layer("cell.0"), layer_2 = layer("cell.1")),
        decoder = layer("decoder"),
    )
end

function name_weights(ps)
    layers = [
        "encoder" => ps.encoder, "cell.0" => ps.cell.layer_1, "cell.1" => ps.cell.layer_2,
        "decoder" => ps.decoder,
    ]
    return [
        "$name.$kind" => layer[kind] for (name, layer) in layers for kind in (:weight, :bias)
    ]
end

function make_program(given, ps)
    number(name) = only(given[name])
    T = eltype(ps.encoder.weight)
    settings = (;
        abstol = T(number("abstol")), reltol = T(number("reltol")),
        odesolve_kwargs = (;
            abstol = T(number("ode_abstol")), reltol = T(number("ode_reltol")),
            maxiters = number("max_steps"), save_everystep = false,
        ),
    )
    dense(p, σ...) = Dense(size(p.weight, 2) => size(p.weight, 1), σ...)
    cell = Chain(dense(ps.cell.layer_1, tanh), dense(ps.cell.layer_2))
    train_encoder = number("train_encoder") != 0
    return Program(dense(ps.encoder), cell, dense(ps.decoder), train_encoder, settings)
end

runs(n, length) = [first:min(first + length - 1, n) for first in 1:length:n]

function main(input, output)
    given = npzread(input)
    ps = read_weights(given)
    program = make_program(given, ps)
    x, target, order = given["x"], given["target"], given["order"] .+ 1
    batch_size = only(given["batch_size"])
    state = Optimisers.setup(Adam(only(given["learning_rate"])), ps)
    losses, seen, seconds = Float64[], Tuple{Int, Bool}[], zeros(3)
    for (step, run) in enumerate(runs(length(order), batch_size))
        seconds[min(step, 2)] += @elapsed begin
            batch = order[run]
            loss, grads = Zygote.withgradient(ps) do ps
                cross_entropy(forward(program, ps, x[:, batch], seen), target[:, batch])
            end
            state, ps = Optimisers.update(state, ps, only(grads))
        end
        push!(losses, loss)
    end
    seen_test, x_test = Tuple{Int, Bool}[], given["x_test"]
    seconds[3] = @elapsed begin
        logits = [
            forward(program, ps, x_test[:, run], seen_test)
                for run in runs(size(x_test, 2), batch_size)
        ]
    end
    npzwrite(
        output,
        Dict(
            name_weights(ps)..., "loss" => losses, "n_evals" => first.(seen),
            "failed" => Int.(last.(seen)), "output" => reduce(hcat, logits),
            "n_evals_test" => first.(seen_test), "failed_test" => Int.(last.(seen_test)),
            "seconds" => seconds,
        ),
    )
    return nothing
end

abspath(PROGRAM_FILE) == @__FILE__() && main(ARGS...)
