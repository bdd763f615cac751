# A cell that is any Lux layer, from a line of Julia: for what the package's own layers do not cover.
module PyDEQCellExt

using ChainRulesCore: ChainRulesCore, @ignore_derivatives
using ForwardDiff: Dual, partials
using Lux: Lux
using LuxCore: LuxCore
using PyDEQ: AbstractJacobian, AbstractNetwork, Model, PyDEQ, cut, jacobian_estimate, pullback_of
using Random: Xoshiro
using Zygote: Zygote

"""
    LuxNetwork(layer, state, given)

The cell f(u, h) of a Lux layer, which is given the tuple `(u, h)` of two arrays (given..., n). Its
parameters are a flat vector, its state stays as it is.
"""
struct LuxNetwork <: AbstractNetwork
    layer::Any
    state::NamedTuple
    tree::NamedTuple  # Lux's parameters, with numbers in the places of the arrays
    names::Vector{String}
    shapes::Vector{Dims}
    n_parameters::Int
    given::Dims
end

function PyDEQ.lux_cell(code::String, given::Vector{Int})
    layer = layer_of(code)
    # (The code has just been made, which this function has not seen yet.)
    ps = Base.invokelatest(LuxCore.initialparameters, Xoshiro(0), layer)
    # As in prediction: a cell with noise has no fixed point.
    state = LuxCore.testmode(Base.invokelatest(LuxCore.initialstates, Xoshiro(0), layer))
    leaves = sort!(named_leaves(ps, "cell"); by = first)  # Python's order
    shapes = Dims[size(array) for (_, array) in leaves]
    cell = LuxNetwork(
        layer, state, numbered(ps, "cell", first.(leaves)), first.(leaves), shapes, sum(prod, shapes; init = 0),
        Tuple(given),
    )
    return Base.invokelatest(checked, cell, ps)
end

"""The cell, if its layer takes what it is given."""
function checked(cell::LuxNetwork, ps)
    u = zeros(Float32, prod(cell.given), 2)
    try
        value(cell, ps, u, u)
    catch error
        shape = join([cell.given..., "n"], ", ")
        throw(
            ArgumentError(
                "cell: the Lux layer fails where it is given (u, h), two arrays ($shape): " *
                    sprint(showerror, error),
            ),
        )
    end
    return cell
end

function PyDEQ.draw_parameters(code::String, seed::Int)
    ps = Base.invokelatest(LuxCore.initialparameters, Xoshiro(seed), layer_of(code))
    leaves = named_leaves(ps, "")
    return String[name for (name, _) in leaves], Any[Array{Float64}(array) for (_, array) in leaves]
end

"""The layer that the code makes, in a module of its own that has Lux and Random."""
function layer_of(code::String)
    place = Module(:PyDEQCell)
    Core.eval(place, :(using Lux, Random))
    made = Base.include_string(place, code, "cell")
    made isa LuxCore.AbstractLuxLayer && return made
    throw(ArgumentError("cell: the code must make a Lux layer; it makes a $(typeof(made))."))
end

"""The arrays of Lux's tree of parameters, by their path."""
function named_leaves(ps::NamedTuple, path)
    parts = [named_leaves(ps[key], path_to(key, path)) for key in keys(ps)]
    return reduce(vcat, parts; init = Tuple{String, Any}[])
end
named_leaves(array::AbstractArray, path) = Tuple{String, Any}[(path, array)]

path_to(key, path) = isempty(path) ? string(key) : "$path.$key"

"""The tree with, in the places of its arrays, where their paths are in `names`."""
numbered(ps::NamedTuple, path, names) =
    NamedTuple{keys(ps)}(map(key -> numbered(ps[key], path_to(key, path), names), keys(ps)))
numbered(::AbstractArray, path, names) = findfirst(==(path), names)

"""Lux's parameters from the flat vector."""
parameters(cell::LuxNetwork, flat) = filled(cell.tree, cut(flat, cell.shapes))
filled(tree::NamedTuple, arrays) = NamedTuple{keys(tree)}(map(part -> filled(part, arrays), values(tree)))
filled(number::Int, arrays) = arrays[number]

PyDEQ.n_layers(::LuxNetwork) = 1
PyDEQ.parameter_names(cell::LuxNetwork, _) = cell.names
PyDEQ.trained_shapes(cell::LuxNetwork) = cell.shapes
PyDEQ.acting_cell(::LuxNetwork, model::Model, flat::AbstractVector) = flat

function (cell::LuxNetwork)(flat::AbstractVector, u::AbstractMatrix, h::AbstractMatrix)
    return value(cell, parameters(cell, flat), u, h)
end

function value(cell::LuxNetwork, ps, u, h)
    at(a) = reshape(a, cell.given..., size(a, 2))
    made = first(cell.layer((at(u), at(h)), ps, cell.state))
    @ignore_derivatives size(made) == (cell.given..., size(u, 2)) || throw(
        DimensionMismatch(
            "cell: the Lux layer must give the shape of the state, $(cell.given) and the samples; it " *
                "gives $(size(made)) for $(size(u, 2)) samples.",
        ),
    )
    return reshape(made, size(u))
end

"""The cell with its parameters."""
struct ActingLux{T}
    network::LuxNetwork
    flat::Vector{T}
    ps::Any
end

ActingLux(network::LuxNetwork, flat::AbstractVector{T}) where {T} =
    ActingLux{T}(network, Vector{T}(flat), parameters(network, Vector{T}(flat)))

(cell::ActingLux)(u, h) = value(cell.network, cell.ps, u, h)

PyDEQ.on_host(network::LuxNetwork, flat, h, pool = nothing) = ActingLux(network, flat)
PyDEQ.evaluate!(out, cell::ActingLux, u, h) = copyto!(out, cell(Array(u), Array(h)))

function PyDEQ.acting(network::LuxNetwork, model::Model, flat, h, pool)
    return ActingLux(network, flat), network.n_parameters, (to_own, to_flat) -> nothing
end

function PyDEQ.pull_at!(to_flat, cell::ActingLux, h, u, row, pool)
    _, back = Zygote.pullback(cell.network, cell.flat, u, h)
    to_own, to_u, to_h = back(row)
    to_own === nothing || (to_flat .+= to_own)
    return @something(to_u, zero(u)), @something(to_h, zero(h))
end

"""The tag of numbers that carry a derivative along a direction of the states."""
struct Along end

# The gradient of ``p^T J s`` is the derivative along s of that of ``p^T f``, which Zygote has: it is
# carried through Zygote's pass beside the values.
function PyDEQ.estimate_with_way_back(cell::ActingLux{T}, u, h, probe) where {T}
    rows = probe .+ zero(u)
    row = @something(only(last(Zygote.pullback(u -> cell(u, h), u))(rows)), zero(u))
    function back(cotangent)
        with(a, along) = Dual{Along}.(a, along)
        alone(a) = with(a, zero(a))
        moving = with(u, 2 .* cotangent .* row)
        _, pull = Zygote.pullback((flat, h) -> cell.network(flat, moving, h), alone(cell.flat), alone(h))
        to_own, to_h = pull(alone(rows))
        along(a, like) = a === nothing ? zero(like) : T[partials(entry, 1) for entry in a]
        return along(to_own, cell.flat), along(to_h, h)
    end
    return sum(abs2, row; dims = 1), back
end

PyDEQ.jacobian_estimate(cell::LuxNetwork, flat, z, h, probe) =
    first(PyDEQ.estimate_with_way_back(ActingLux(cell, flat), z, h, probe))

function ChainRulesCore.rrule(::typeof(jacobian_estimate), cell::LuxNetwork, flat, z, h, probe)
    return pullback_of(PyDEQ.estimate_with_way_back(ActingLux(cell, flat), z, h, probe)..., length(flat))
end

"""df/du at the first `k` samples: each product goes through the layer once more."""
struct LuxJacobian{T} <: AbstractJacobian{T}
    cell::ActingLux{T}
    u::Matrix{T}
    h::Matrix{T}
end

PyDEQ.linearize(cell::ActingLux{T}, u, h, pool = nothing) where {T} =
    LuxJacobian{T}(cell, Matrix{T}(u), Matrix{T}(h))

function PyDEQ.apply!(out, jacobian::LuxJacobian, v, transposed::Bool)
    (; cell, u, h) = jacobian
    k = size(v, 2)
    here, with = u[:, 1:k], h[:, 1:k]
    f(u) = cell(u, with)
    transposed || return copyto!(out, Lux.jacobian_vector_product(f, Lux.AutoForwardDiff(), here, Array(v)))
    pulled = only(last(Zygote.pullback(f, here))(Array(v)))
    return pulled === nothing ? fill!(out, 0) : copyto!(out, pulled)
end

function PyDEQ.move!(jacobian::LuxJacobian, from::Int, to::Int)
    PyDEQ.move_column!(jacobian.u, from, to)
    PyDEQ.move_column!(jacobian.h, from, to)
    return nothing
end

end
