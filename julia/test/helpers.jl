# Builders and comparisons that the tests share.

using DiffEqFlux: DiffEqFlux
using LinearAlgebra: BLAS, I, dot, norm, opnorm
using Lux: Lux
using OrdinaryDiffEqAdamsBashforthMoulton: OrdinaryDiffEqAdamsBashforthMoulton
using OrdinaryDiffEqLowOrderRK: OrdinaryDiffEqLowOrderRK
using OrdinaryDiffEqStabilizedRK: OrdinaryDiffEqStabilizedRK
using OrdinaryDiffEqTsit5: Tsit5
using PyDEQ
using PyDEQ: equilibrium, has_cuda, jvp, load_data!, open_session, restore!, snapshot, train_batch!, trajectory
using Random: Xoshiro, randn!
using SciMLSensitivity: SciMLSensitivity
using SteadyStateDiffEq: DynamicSS
using Zygote: Zygote

const TIGHT = (abstol = 1.0e-11, reltol = 1.0e-11, ode_abstol = 1.0e-12, ode_reltol = 1.0e-12)

const DEFAULTS = (;
    n_features = 3, n_outputs = 2, n_state = 6, hidden_layer_sizes = [7], activation = "tanh",
    stability = "none", contraction = 0.9, horizon = nothing, solver = "tsit5",
    TIGHT..., max_steps = 20_000, adjoint = "implicit", loss = "squared_error",
    learning_rate = 0.02, alpha = 0.1, jacobian_penalty = 0.0,
    train_encoder = true, device = "cpu",
)

"""Names and shapes (Julia's) of the parameters."""
function layout(s)
    width = something(s.n_state, s.n_features)
    widths = [width; s.hidden_layer_sizes; width]
    layers = ["cell.$(i - 1)" => (widths[i], widths[i + 1]) for i in 1:(length(widths) - 1)]
    if s.n_state !== nothing
        layers = [
            "encoder" => (s.n_features, width); layers; "decoder" => (width, s.n_outputs)
        ]
    end
    names = [name * kind for (name, _) in layers for kind in (".weight", ".bias")]
    shapes = Dims[shape for (_, (n, m)) in layers for shape in ((m, n), (m,))]
    if s.stability == "monotone"
        at = findfirst(==("cell.0.weight"), names)
        insert!(names, at + 1, "cell.0.skew")
        insert!(shapes, at + 1, (width, width))
    end
    return names, shapes
end

"""Glorot weights, the cell's times `scale`, and small biases."""
function random_arrays(s, T = Float64; scale = 0.6, seed = 0)
    rng = Xoshiro(seed)
    names, shapes = layout(s)
    return map(names, shapes) do name, shape
        length(shape) == 1 && return T.(0.1 .* randn(rng, shape...))
        factor = startswith(name, "cell") ? scale : 1.0
        return T.(factor .* sqrt(6 / sum(shape)) .* (2 .* rand(rng, shape...) .- 1))
    end
end

function random_batch(s, T = Float64; n = 8, seed = 1)
    rng = Xoshiro(seed)
    x = randn(rng, s.n_features, n)
    target = T.(randn(rng, s.n_outputs, n))
    if s.loss == "log_loss"
        target = rand(rng, 1:(s.n_outputs), n)
    end
    return T.(x), target, T.(0.5 .+ 1.5 .* rand(rng, n))
end

width(s) = something(s.n_state, s.n_features)

settings(; changes...) = merge(DEFAULTS, values(changes))

"""Open a session as Python does."""
function open_with(s, arrays; more...)
    given = (; s..., names = first(layout(s)), arrays, more...)
    return open_session([string(name) for name in keys(given)], Any[values(given)...])
end

"""A vector like the session's `theta`, as the parameters' arrays."""
arrays_of(session, flat) = [collect(array) for array in PyDEQ.cut(Array(flat), PyDEQ.parameter_shapes(session.model))]

get_arrays(session) = arrays_of(session, session.theta)

function loss_and_grad(session, args...)
    loss, gradient = PyDEQ.loss_and_grad(session, args...)
    return loss, arrays_of(session, gradient)
end

function optimizer_state(session)
    m, v = (Any[zero(array) for array in get_arrays(session)] for _ in 1:2)
    return PyDEQ.write_moments!(session, m, v), m, v
end

"""A probe of signs for the Jacobian penalty."""
probe_of(s, T = Float64) = T.(rand(Xoshiro(5), [-1.0, 1.0], width(s)))

"""The cell by plain matrix products: f(v) with v = u + h."""
function plain_cell(s, arrays, v; factor = 1.0)
    σ = Dict(
        "identity" => identity, "tanh" => tanh, "relu" => x -> max(x, 0),
        "logistic" => x -> 1 / (1 + exp(-x)),
    )[s.activation]
    own = s.n_state === nothing ? arrays : arrays[3:(end - 2)]
    for i in 1:2:length(own)
        v = factor .* own[i] * v .+ own[i + 1]
        i < length(own) - 1 && (v = σ.(v))
    end
    return v
end

encode(s, arrays, x) = s.n_state === nothing ? x : arrays[1] * x .+ arrays[2]

"""The largest error relative to the largest expected entry."""
off_by(found, expected) = maximum(abs, found .- expected) / maximum(abs, expected)

"""The fourth-order difference quotient of `f` along `direction` from `arrays`."""
function difference_quotient(f, arrays, direction; step = 1.0e-3)
    at(d) = f([a .+ d .* v for (a, v) in zip(arrays, direction)])
    near, far = at(step) - at(-step), at(2step) - at(-2step)
    return (8near - far) / (12step)
end

function random_direction(arrays, seed)
    direction = [randn!(Xoshiro(seed + i), similar(a)) for (i, a) in enumerate(arrays)]
    return direction ./ norm(norm.(direction))
end

inner(a, b) = sum(sum(x .* y) for (x, y) in zip(a, b))

# f(s) = a relu(s) - b relu(-s): above 0 the state has slope a, below 0 slope b.
two_slopes(a, b) = [[1.0; -1.0;;], zeros(2), [a -b], zeros(1)]
const TWO_SLOPES = (;
    n_features = 1, n_outputs = 1, n_state = nothing, hidden_layer_sizes = [2], activation = "relu",
)
