# The post's MNIST program in Lux, once with PyDEQ's layer and once with DeepEquilibriumNetworks.jl's:
#
#     julia --project=ENVIRONMENT tests/benchmarks/lux_layers.jl FOLDER [SAMPLES] [ROUNDS]
#
# FOLDER has MNIST's two training files, unpacked. The environment needs
#
#     pkg> dev julia
#     pkg> add DeepEquilibriumNetworks Lux NonlinearSolveBase Optimisers OrdinaryDiffEqTsit5
#     pkg> add SteadyStateDiffEq Zygote
#
# All start from the same weights, search to the same tolerance, and see the same batches. In each
# round each trains for one epoch of SAMPLES, by turns; what is printed are medians of the rounds.

using DeepEquilibriumNetworks, Lux, Optimisers, OrdinaryDiffEqTsit5, PyDEQ, Random, SteadyStateDiffEq
using NonlinearSolveBase: NormTerminationMode
using Statistics: mean, median
using Zygote: Zygote

const TOLERANCE = 1.0f-3
const BATCH = 128

dense(args...) = Dense(args...; init_weight = glorot_uniform, init_bias = zeros32)
hidden() = dense(100 => 500, tanh)
last_layer() = dense(500 => 100)

function ours(solver)
    cell = Chain(hidden(), last_layer())
    return DeepEquilibrium(cell, solver; abstol = TOLERANCE, reltol = TOLERANCE)
end

function theirs(solver)
    cell = Chain(Parallel(+, NoOpLayer(), NoOpLayer()), hidden(), last_layer())
    # Both get the tolerances of the ODE's steps that ours takes by itself. With those of the search
    # its ODE never settles to them, and goes on until `maxiters` ends it.
    odesolve_kwargs = (; abstol = 1.0f-6, reltol = TOLERANCE, save_everystep = false)
    return DeepEquilibriumNetwork(
        cell, solver; abstol = TOLERANCE, reltol = TOLERANCE, maxiters = 1000, verbose = false,
        termination_condition = NormTerminationMode(Base.Fix1(maximum, abs)), odesolve_kwargs,
    )
end

const LAYERS = [
    "DeepEquilibriumNetworks, Tsit5" => theirs(Tsit5()),
    "PyDEQ, DynamicSS(Tsit5())" => ours(DynamicSS(Tsit5())),
    "PyDEQ, Batched(:tsit5)" => ours(Batched(:tsit5)),
    "PyDEQ, Batched(:anderson)" => ours(Batched(:anderson)),
]

"""Put `values`, arrays in order, in the place of the parameters' own, of which some may be empty."""
function with_values(ps, values)
    left = Iterators.Stateful(values)
    return Lux.fmap(a -> a isa AbstractArray && !isempty(a) ? copy(popfirst!(left)) : a, ps)
end

function start(layer, values)
    model = Chain(dense(784 => 100), layer, dense(100 => 10))
    ps, st = Lux.setup(Xoshiro(0), model)
    return Training.TrainState(model, with_values(ps, values), st, Adam(3.0f-4))
end

"""Mean evaluations of the cell a sample, of a layer's last search."""
evaluations(solution::NamedTuple) = mean(solution.n_evals)
evaluations(solution::DeepEquilibriumSolution) = solution.nfe

"""Train for an epoch; return the mean loss and the mean evaluations of a sample."""
function epoch(trained, x, y)
    loss_function = CrossEntropyLoss(; logits = Val(true))
    total, n_evals = 0.0, 0.0
    for batch in Iterators.partition(axes(x, 2), BATCH)
        data = (x[:, batch], y[:, batch])
        _, loss, _, trained = Training.single_train_step!(AutoZygote(), loss_function, data, trained)
        total += loss * length(batch)
        n_evals += evaluations(trained.states.layer_2.solution) * length(batch)
    end
    return total / size(x, 2), n_evals / size(x, 2)
end

function read_mnist(folder, n)
    images = read(joinpath(folder, "train-images-idx3-ubyte"))[17:end]
    labels = read(joinpath(folder, "train-labels-idx1-ubyte"))[9:end]
    x = reshape(images, 28 * 28, :)[:, 1:n] ./ 255.0f0
    return x, Float32[class == label for class in 0:9, label in labels[1:n]]
end

cpu_seconds() = ccall(:clock, Clong, ()) / 1.0e6

function main(folder, n = "5000", rounds = "3")
    x, y = read_mnist(folder, parse(Int, n))
    shapes = [(100, 784), (100,), (500, 100), (500,), (100, 500), (100,), (10, 100), (10,)]
    rng = Xoshiro(0)
    values = [length(s) == 1 ? zeros32(s...) : glorot_uniform(rng, s...) for s in shapes]
    for (_, layer) in LAYERS  # what is compiled is no part of it
        epoch(start(layer, values), x[:, 1:(2BATCH)], y[:, 1:(2BATCH)])
    end
    found = Dict(name => NTuple{4, Float64}[] for (name, _) in LAYERS)
    for _ in 1:parse(Int, rounds), (name, layer) in LAYERS
        trained, cpu = start(layer, values), cpu_seconds()
        seconds = @elapsed loss, n_evals = epoch(trained, x, y)
        push!(found[name], (seconds, cpu_seconds() - cpu, loss, n_evals))
    end
    for (name, _) in LAYERS
        seconds, cpu, loss, n_evals =
            (round(median(getindex.(found[name], i)); digits = 3) for i in 1:4)
        println(rpad(name, 32), "seconds $seconds, CPU $cpu, loss $loss, evaluations $n_evals")
    end
    return nothing
end

main(ARGS...)
