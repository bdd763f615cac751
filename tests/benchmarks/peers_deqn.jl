# DeepEquilibriumNetworks.jl's contestant for peers.py, which starts it and drives it over a pipe:
#
#     julia --project=$PYDEQ_BENCH_JULIA_PROJECT peers_deqn.jl SOLVER FOLDER
#
# Stand-alone: it knows nothing of pydeq. The project needs
#
#     pkg> add DeepEquilibriumNetworks Lux OrdinaryDiffEqAdamsBashforthMoulton OrdinaryDiffEqTsit5
#     pkg> add NonlinearSolveBase SciMLSensitivity Optimisers Zygote
#
# The protocol and the files are those of contestants/worker.py and contestants/task.py: raw
# little-endian arrays in C order, so that a weight (n_in, n_out) reads here as Lux's (n_out, n_in)
# and samples are columns. Run with DeepEquilibriumNetworks 2.7.4 on Julia 1.11.4.

using DeepEquilibriumNetworks, Lux, Optimisers, Random, SciMLSensitivity, Zygote
using NonlinearSolveBase: RelNormTerminationMode
using OrdinaryDiffEqTsit5: Tsit5
using OrdinaryDiffEqAdamsBashforthMoulton: VCAB3

const SOLVERS = Dict("VCAB3" => VCAB3, "Tsit5" => Tsit5)
const SHAPES = Dict(
    "encoder" => (784, 100), "cell.0" => (100, 500), "cell.1" => (500, 100), "decoder" => (100, 10)
)
const NAMES = ("encoder", "cell.0", "cell.1", "decoder")
const CHUNK = 1000

read_array(T, path, dims...) = reshape(reinterpret(T, read(path)), dims...) |> Array
write_array(path, array) = open(io -> write(io, vec(array)), path, "w")

"Return the number called `name` in the flat JSON of task.json."
function number(text, name)
    found = match(Regex("\"$name\":\\s*([-+0-9.eE]+)"), text)
    return parse(Float64, found.captures[1])
end

"Encoder, DEQ of a cell on z + h, decoder, as in the package's MNIST tutorial."
function build(solver, reltol)
    cell = Chain(
        Parallel(+, NoOpLayer(), NoOpLayer()), Dense(100 => 500, tanh), Dense(500 => 100)
    )
    deq = DeepEquilibriumNetwork(
        cell, SOLVERS[solver]();
        verbose = false, abstol = 1.0f-6, reltol = Float32(reltol), maxiters = 1000,
        termination_condition = RelNormTerminationMode(Base.Fix1(maximum, abs))
    )
    return Chain(; encoder = Dense(784 => 100), deq, decoder = Dense(100 => 10))
end

"Return the parameters `ps` with the task's starting weights."
function start(ps, folder)
    dense = map(NAMES) do name
        n_in, n_out = SHAPES[name]
        weight = read_array(Float32, joinpath(folder, "$name.weight.f4"), n_out, n_in)
        (; weight, bias = read_array(Float32, joinpath(folder, "$name.bias.f4"), n_out))
    end
    model = (; layer_1 = ps.deq.model.layer_1, layer_2 = dense[2], layer_3 = dense[3])
    return (; encoder = dense[1], deq = merge(ps.deq, (; model)), decoder = dense[4])
end

mutable struct Contestant
    train_state::Any
    const x::Matrix{Float32}
    const target::Matrix{Float32}
    const x_test::Matrix{Float32}
    const batch_size::Int
    forward::Float64
end

function Contestant(solver, folder)
    text = read(joinpath(folder, "task.json"), String)
    model = build(solver, number(text, "reltol"))
    ps, st = Lux.setup(Xoshiro(Int(number(text, "seed"))), model)
    optimiser = Optimisers.Adam(Float32(number(text, "learning_rate")))
    train_state = Training.TrainState(model, start(ps, folder), st, optimiser)
    x = read_array(Float32, joinpath(folder, "x.f4"), 784, :)
    y = read_array(Int64, joinpath(folder, "y.i8"), :)
    target = Float32[class == label for class in 0:9, label in y]
    x_test = read_array(Float32, joinpath(folder, "x_test.f4"), 784, :)
    batch_size = Int(number(text, "batch_size"))
    return Contestant(train_state, x, target, x_test, batch_size, 0.0)
end

function loss_function(model, ps, st, (x, target))
    output, st = model(x, ps, st)
    return CrossEntropyLoss(; logits = Val(true))(output, target), st, (;)
end

"One epoch, or a part of it; return the mean loss."
function train!(c::Contestant, order)
    total = 0.0
    c.forward = 0.0
    for batch in Iterators.partition(order .+ 1, c.batch_size)
        data = (c.x[:, batch], c.target[:, batch])
        _, loss, _, c.train_state = Training.single_train_step!(
            AutoZygote(), loss_function, data, c.train_state
        )
        c.forward += c.train_state.states.deq.solution.nfe * length(batch)
        total += loss * length(batch)
    end
    return total / length(order)
end

function predict(c::Contestant)
    (; model, parameters, states) = c.train_state
    states = Lux.testmode(states)
    evals, n = 0.0, size(c.x_test, 2)
    parts = map(Iterators.partition(1:n, CHUNK)) do columns
        output, st = model(c.x_test[:, columns], parameters, states)
        evals += st.deq.solution.nfe * length(columns)
        st.deq.solution.z_star, output
    end
    return reduce(hcat, first.(parts)), reduce(hcat, last.(parts)), evals / n
end

function write_prediction(c::Contestant, prefix, state, output)
    ps = c.train_state.parameters
    dense = (ps.encoder, ps.deq.model.layer_2, ps.deq.model.layer_3, ps.decoder)
    write_array("$prefix.state.f4", state)
    write_array("$prefix.output.f4", output)
    lines = ["mlp tanh"]
    for (name, layer) in zip(NAMES, dense)
        n_in, n_out = SHAPES[name]
        write_array("$prefix.$name.weight.f4", layer.weight)
        write_array("$prefix.$name.bias.f4", layer.bias)
        push!(lines, "$name.weight $n_in $n_out", "$name.bias $n_out")
    end
    return write("$prefix.form", join(lines, "\n"))
end

function answer(c::Contestant, words)
    words[1] == "memory" && return "ok peak=$(Sys.maxrss())"
    if words[1] == "train"
        order = read_array(Int64, words[2], :)
        seconds = @elapsed loss = train!(c, order)
        # The adjoint's products are not counted by the package.
        return "ok seconds=$seconds forward=$(c.forward / length(order)) backward=nan loss=$loss"
    end
    seconds = @elapsed (state, output, evals) = predict(c)
    write_prediction(c, words[2], state, output)
    return "ok seconds=$seconds evals=$evals"
end

function main(solver, folder)
    contestant = Contestant(solver, folder)
    println("ready")
    flush(stdout)
    for line in eachline(stdin)
        words = split(line)
        words[1] == "quit" && return
        println(answer(contestant, words))
        flush(stdout)
    end
    return
end

main(ARGS...)
