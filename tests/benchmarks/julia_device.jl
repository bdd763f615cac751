# Sessions on a GPU beside the same on the CPU: their values, and the time of epochs and predictions.
#
#     julia --project=PROJECT tests/benchmarks/julia_device.jl FOLDER [DEVICE]
#
# PROJECT has PyDEQ and CUDA, FOLDER the four files of MNIST (`*-ubyte.gz`), DEVICE is cuda.

using CUDA: CUDA
using LinearAlgebra: BLAS
using PyDEQ: PyDEQ, Model, Session, Solver, Training, equilibrium, load_data!, loss_and_grad, train_batch!
using Random: Xoshiro, randperm

const FOLDER, DEVICE = ARGS[1], get(ARGS, 2, "cuda")
const N = 20_000

say(args...) = (println(args...); flush(stdout))
differ(a, b) = maximum(abs, a .- b) / maximum(abs, b)

"""Glorot weights and small biases, the cell's weights times `scale`."""
function start(model, ::Type{T}; scale) where {T}
    rng = Xoshiro(0)
    arrays = map(PyDEQ.parameter_names(model), PyDEQ.parameter_shapes(model)) do name, shape
        length(shape) == 1 && return T.(0.1 .* randn(rng, shape...))
        factor = startswith(name, "cell") ? scale : 1.0
        return T.(factor .* sqrt(6 / sum(shape)) .* (2 .* rand(rng, shape...) .- 1))
    end
    return reduce(vcat, vec.(arrays))
end

at(device, model, solver, training, theta) =
    Session(model, solver, training, copy(theta), PyDEQ.find_device(device))

# --- values ---

const WAYS = [
    (:contractive, :implicit, :anderson), (:none, :implicit, :tsit5), (:none, :implicit, :newton),
    (:contractive, :implicit, :broyden), (:monotone, :implicit, :peaceman_rachford),
    (:none, :implicit, :fixed_point), (:jacobian, :implicit, :anderson), (:contractive, :jfb, :anderson),
]

function compare(::Type{T}, stability, adjoint, name) where {T}
    model = Model(3, 2, 6, stability === :monotone ? Int[] : [7], :tanh, stability, 0.9, nothing)
    tolerance = T == Float64 ? 1.0e-11 : 1.0e-5
    solver = Solver(name, tolerance, tolerance, tolerance / 10, tolerance, 1000, adjoint)
    training = Training(:log_loss, 0.02, 0.1, 0.1, 0.0, true)
    theta, rng = start(model, T; scale = 0.6), Xoshiro(1)
    x, classes, weight, probe = randn(rng, T, 3, 8), rand(rng, 1:2, 8), 0.5 .+ rand(rng, T, 8), ones(T, 6)
    there, here = map((DEVICE, "cpu")) do device
        session = at(device, model, solver, training, theta)
        found = equilibrium(session, x)
        loss, gradient = loss_and_grad(session, x, classes, weight, probe)
        load_data!(session, x, classes, weight)
        foreach(_ -> train_batch!(session, [3, 1, 8, 5, 2], probe), 1:3)
        (; found, loss, gradient = Array(gradient), theta = Array(session.theta))
    end
    say(
        "$T $stability $name $adjoint: states ", differ(there.found.state, here.found.state), ", loss ",
        abs(there.loss - here.loss) / here.loss, ", gradient ", differ(there.gradient, here.gradient),
        ", weights after 3 steps ", differ(there.theta, here.theta), ", the same converge: ",
        there.found.converged == here.found.converged,
    )
    return nothing
end

# --- digits ---

unzipped(name) = read(`gzip -dc $(joinpath(FOLDER, name))`)
images(name) = Float32.(reshape(unzipped(name)[17:end], 784, :)) ./ 255.0f0
classes(name) = Int.(unzipped(name)[9:end]) .+ 1

const X, Y = images("train-images-idx3-ubyte.gz")[:, 1:N], classes("train-labels-idx1-ubyte.gz")[1:N]
const X_TEST, Y_TEST = images("t10k-images-idx3-ubyte.gz"), classes("t10k-labels-idx1-ubyte.gz")

function epoch!(session, batch_size, rng)
    order, probe = randperm(rng, N), ones(Float32, session.model.width)
    reports = [
        train_batch!(session, order[i:min(i + batch_size - 1, N)], probe) for i in 1:batch_size:N
    ]
    return sum(r.loss * r.weight for r in reports) / N, sum(r.n_failed for r in reports)
end

function digits(; width, hidden, batch_size, epochs = 3, devices = (DEVICE, "cpu"))
    model = Model(784, 10, width, [hidden], :relu, :contractive, 0.9, nothing)
    solver = Solver(:anderson, 1.0e-6, 1.0e-3, 1000, :implicit)
    training = Training(:log_loss, 1.0e-3, 1.0e-4, 0.0, 0.0, true)
    theta = start(model, Float32; scale = 1.0)
    for device in devices
        session, rng = at(device, model, solver, training, theta), Xoshiro(1)
        load_data!(session, X, Y, ones(Float32, N))
        for k in 1:epochs
            took = @elapsed (loss, n_failed) = epoch!(session, batch_size, rng)
            say(
                "width $width, batch $batch_size, $device, epoch $k: ", round(took; digits = 3), " s, loss ",
                loss, ", failed ", n_failed,
            )
        end
        equilibrium(session, X_TEST)
        took = @elapsed found = equilibrium(session, X_TEST)
        right = count(j -> argmax(found.output[:, j]) == Y_TEST[j], eachindex(Y_TEST)) / length(Y_TEST)
        say(
            "  predicts 10,000 in ", round(took; digits = 3), " s, accuracy ", right, ", converged ",
            count(found.converged),
        )
    end
    return nothing
end

if CUDA.functional()
    say("CUDA.jl ", pkgversion(CUDA), " on ", CUDA.name(CUDA.device()), ", CUDA ", CUDA.runtime_version())
end
say("Julia ", VERSION, ", BLAS on ", BLAS.get_num_threads(), " threads")
for T in (Float64, Float32), way in WAYS
    compare(T, way...)
end
digits(; width = 128, hidden = 128, batch_size = 128)
digits(; width = 128, hidden = 128, batch_size = 2000)
digits(; width = 2048, hidden = 2048, batch_size = 1000, epochs = 2)
