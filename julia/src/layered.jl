# Networks of layers, and the cell that one is: in the places of `Network`, `Cell` and `Jacobian`.

"""
    LayeredNetwork(layers, given, gives)

The [`Layer`](@ref)s one after another, which make samples of the shape `gives` of those of the shape
`given`; they go in and come out as columns. Its parameters are a flat vector. As a cell it is a
function of u + h; the monotone one, a convolution and an activation, has h between the two.

A contractive cell's flat vector has one number more at its end, as it acts: what its own
[`NestedLayer`](@ref)s are multiplied by.
"""
struct LayeredNetwork <: AbstractNetwork
    layers::Vector{Layer}
    given::Dims
    gives::Dims
    shapes::Vector{Dims}
    n_parameters::Int
    is_monotone::Bool
end

function LayeredNetwork(layers::AbstractVector, given, gives; is_monotone::Bool = false)
    own = reduce(vcat, shapes.(layers); init = Dims[])
    return LayeredNetwork(
        layers, Tuple(given), Tuple(gives), own, sum(prod, own; init = 0), is_monotone
    )
end

parameter_names(network::LayeredNetwork, _) =
    reduce(vcat, parameter_names.(network.layers); init = String[])

"""The layers with their parameters as they act, for arrays on the host."""
struct ActingLayers{T <: AbstractFloat}
    network::LayeredNetwork
    arrays::Vector{Any}
    factor::T  # of the own layers of layers
end

function ActingLayers(network::LayeredNetwork, flat::AbstractVector{T}) where {T}
    n = network.n_parameters
    arrays = Any[Array{T}(array) for array in cut(view(flat, 1:n), network.shapes)]
    return ActingLayers{T}(network, arrays, length(flat) > n ? last(flat) : one(T))
end

with_parameters(acting::ActingLayers) =
    collect(zip(acting.network.layers, each_with_parameters(acting.network.layers, acting.arrays)))

as_columns(a::Array) = reshape(a, :, n_samples(a))

"""
Return the value at the columns `v`, as columns, and each layer's memory for the way back. What is to be
added to the first layer's value, if anything, is `h`.
"""
function forward_columns(acting::ActingLayers, v::AbstractMatrix, h = nothing)
    a, memories = reshape(convert(Array, v), acting.network.given..., :), Any[]
    for (layer, ps) in with_parameters(acting)
        a, memory = forward(layer, ps, a)
        push!(memories, memory)
        layer isa NestedLayer && (a = a .* acting.factor)
        h !== nothing && length(memories) == 1 && (a = a .+ reshape(h, size(a)))
    end
    return as_columns(a), memories
end

"""The columns that go into the cell's first layer, and those that are added to its value."""
cell_input(cell::ActingLayers, u, h) = cell.network.is_monotone ? (u, h) : (u .+ h, nothing)

"""Return ``(\\partial value / \\partial v)^T`` times the columns `row`."""
function pull_columns(acting::ActingLayers, memories, row::AbstractMatrix)
    row = reshape(convert(Array, row), acting.network.gives..., :)
    for ((layer, ps), memory) in Iterators.reverse(zip(with_parameters(acting), memories))
        layer isa NestedLayer && (row = row .* acting.factor)
        row = pull(layer, ps, memory, row)
    end
    return as_columns(row)
end

"""
    pull_gradients(acting, memories, row, wants_row) -> (flat, row)

Return the gradient in the flat parameters as they act and, where it is wanted, what
[`pull_columns`](@ref) returns.
"""
function pull_gradients(acting::ActingLayers{T}, memories, row::AbstractMatrix{S}, wants_row) where {T, S}
    row = reshape(convert(Array, row), acting.network.gives..., :)
    found, to_factor = Any[], zero(S)
    for (i, ((layer, ps), memory)) in Iterators.reverse(enumerate(zip(with_parameters(acting), memories)))
        if layer isa NestedLayer
            to_factor += sum(row .* only(last(memory)))
            row = row .* acting.factor
        end
        if i == 1 && !wants_row
            prepend!(found, gradients(layer, ps, memory, row))
        else
            row, own = pull_with_gradients(layer, ps, memory, row)
            prepend!(found, own)
        end
    end
    return glue(push!(found, S[to_factor])), as_columns(row)
end

"""The value (n_out, n) at `v` (n_in, n), with the parameters `flat`."""
function (network::LayeredNetwork)(flat::AbstractVector, v::AbstractMatrix)
    return isempty(network.layers) ? v : first(forward_columns(ActingLayers(network, flat), v))
end

function (cell::LayeredNetwork)(flat::AbstractVector, u::AbstractMatrix, h::AbstractMatrix)
    return cell.is_monotone ? monotone_value(cell, flat, u, h) : cell(flat, u .+ h)
end

function ChainRulesCore.rrule(network::LayeredNetwork, flat::AbstractVector, v::AbstractMatrix)
    value, back = value_and_pull(network, flat, v)
    return value, cotangent -> (NoTangent(), back(unthunk(cotangent), true)...)
end

encode(encoder::LayeredNetwork, flat::AbstractVector, x::AbstractMatrix) = encoder(flat, x)

function ChainRulesCore.rrule(::typeof(encode), encoder::LayeredNetwork, flat::AbstractVector, x::AbstractMatrix)
    value, back = value_and_pull(encoder, flat, x)
    return value, row -> (NoTangent(), NoTangent(), first(back(unthunk(row), false)), NoTangent())
end

"""The value, and a function of its cotangent that returns those of `flat` and, if wanted, of `v`."""
function value_and_pull(network::LayeredNetwork, flat, v)
    isempty(network.layers) && return v, (row, _) -> (zero(flat), row)
    acting = ActingLayers(network, flat)
    value, memories = forward_columns(acting, v)
    function back(row, wants_row)
        gradient, to_v = pull_gradients(acting, memories, row, wants_row)
        return gradient[1:length(flat)], to_v
    end
    return value, back
end

function with_way_back(network::LayeredNetwork, flat, v, pool)
    value, pull = value_and_pull(network, flat, v)
    function back!(gradient, row, wants_row)
        found, to_v = pull(row, wants_row)
        copyto!(gradient, found)
        return to_v
    end
    return value, back!
end

on_host(network::LayeredNetwork, flat, h, pool = nothing) = ActingLayers(network, flat)

evaluate!(out, cell::ActingLayers, u, h) =
    copyto!(out, first(forward_columns(cell, cell_input(cell, u, h)...)))

"""How far from the real axis a derivative is carried: its square is nothing beside 1."""
tiny_step(::Type{Float64}) = 1.0e-30
tiny_step(::Type{Float32}) = 1.0f-10

"""
    LayeredJacobian(cell, u, h)

df/du at the k samples of `u`: see [`apply!`](@ref).
"""
mutable struct LayeredJacobian{T} <: AbstractJacobian{T}
    const cell::ActingLayers{T}
    v::Matrix{T}  # what goes into the first layer
    h::Union{Matrix{T}, Nothing}  # what is added to its value
    memories::Vector{Any}
end

function LayeredJacobian(cell::ActingLayers{T}, u, h) where {T}
    v, h = cell_input(cell, Matrix{T}(u), Matrix{T}(h))
    return LayeredJacobian{T}(cell, v, h, last(forward_columns(cell, v, h)))
end

linearize(cell::ActingLayers, u, h, pool = nothing) = LayeredJacobian(cell, u, h)

function apply!(out, jacobian::LayeredJacobian{T}, v, transposed::Bool) where {T}
    (; cell) = jacobian
    keep!(jacobian, size(v, 2))
    transposed && return copyto!(out, pull_columns(cell, jacobian.memories, v))
    value, _ = forward_columns(cell, complex.(jacobian.v, tiny_step(T) .* v), jacobian.h)
    out .= imag.(value) ./ tiny_step(T)
    return out
end

function move!(jacobian::LayeredJacobian, from::Int, to::Int)
    move_column!(jacobian.v, from, to)
    jacobian.h === nothing || move_column!(jacobian.h, from, to)
    move_column!(jacobian.memories, from, to)
    return nothing
end

"""Let go of all but the first `k` samples."""
function keep!(jacobian::LayeredJacobian, k::Int)
    k == size(jacobian.v, 2) && return nothing
    jacobian.v, jacobian.memories = first_samples(jacobian.v, k), first_samples(jacobian.memories, k)
    jacobian.h === nothing || (jacobian.h = first_samples(jacobian.h, k))
    return nothing
end

first_samples(memories::Vector{Any}, k) = Any[first_samples(memory, k) for memory in memories]
first_samples(a::Array, k) = copy(selectdim(a, ndims(a), 1:k))

move_column!(memories::Vector{Any}, from::Int, to::Int) =
    foreach(memory -> move_column!(memory, from, to), memories)

function move_column!(a::Array, from::Int, to::Int)
    n = length(a) ÷ n_samples(a)
    copyto!(a, (to - 1) * n + 1, a, (from - 1) * n + 1, n)
    return nothing
end

"""
The penalty's estimate for a cell of layers. Its own gradient is the derivative of the cell's
gradient along a direction: as second derivatives commute, that of ``p^T J(v) s`` with s constant.
"""
function estimate_with_way_back(acting::ActingLayers{T}, u, h, probe) where {T}
    v = u .+ h
    _, memories = forward_columns(acting, v)
    rows, step = probe .+ zero(v), tiny_step(T)
    row = pull_columns(acting, memories, rows)
    function back(cotangent)
        direction = 2 .* cotangent .* row
        # A direction of size 1 keeps clear of what is too small for a number.
        size_of = maximum(abs, direction)
        size_of > 0 || return zeros(T, acting.network.n_parameters + 1), zero(v)
        _, memories = forward_columns(acting, complex.(v, (step / size_of) .* direction))
        gradient, to_v = pull_gradients(acting, memories, complex.(rows), true)
        along(a) = (size_of / step) .* imag.(a)
        return along(gradient), along(to_v)
    end
    return sum(abs2, row; dims = 1), back
end

jacobian_estimate(cell::LayeredNetwork, flat, z, h, probe) =
    first(estimate_with_way_back(ActingLayers(cell, flat), z, h, probe))

# For Zygote.
function ChainRulesCore.rrule(::typeof(jacobian_estimate), cell::LayeredNetwork, flat, z, h, probe)
    return pullback_of(estimate_with_way_back(ActingLayers(cell, flat), z, h, probe)..., length(flat))
end

function pull_at!(to_flat, cell::ActingLayers, h, u, row, pool)
    _, memories = forward_columns(cell, cell_input(cell, u, h)...)
    gradient, to_u = pull_gradients(cell, memories, row, true)
    to_flat .+= view(gradient, eachindex(to_flat))
    return to_u, cell.network.is_monotone ? after_first(cell, memories, row) : to_u
end

function acting(network::LayeredNetwork, model::Model, flat, h, pool)
    n = network.n_parameters
    network.is_monotone && return acting_monotone(network, model, flat)
    model.stability === :contractive || return ActingLayers(network, flat), n, (to_own, to_flat) -> nothing
    acts, back = contract_with_way_back(network, model.contraction, flat)
    return ActingLayers(network, acts), n + 1, (to_own, to_flat) -> copyto!(to_own, back(to_flat))
end

"""
    with_layers(model, encoder, cell, decoder, init = nothing) -> Model

Return the model with the [`LayeredNetwork`](@ref)s in the places of its own; what is `nothing` stays as
it is.
"""
function with_layers(model::Model, encoder, cell, decoder, init = nothing)
    if model.stability === :monotone && cell !== nothing
        cell = monotone_network(cell)
    end
    return Model(
        something(encoder, model.encoder), something(cell, model.cell), something(decoder, model.decoder),
        something(init, model.init), model.width, model.stability, model.contraction, model.horizon,
    )
end

n_layers(network::LayeredNetwork) = length(network.layers)
trained_shapes(cell::LayeredNetwork) = cell.is_monotone ? shapes_of_parts(cell) : cell.shapes

function acting_cell(cell::LayeredNetwork, model::Model, flat::AbstractVector)
    cell.is_monotone && return composed_cell(cell, flat)
    return model.stability === :contractive ? contracted(cell, model.contraction, flat) : flat
end

"""See [`contract_layers`](@ref)."""
contracted(cell::LayeredNetwork, contraction, flat) = first(contract_with_way_back(cell, contraction, flat))

function ChainRulesCore.rrule(::typeof(contracted), cell::LayeredNetwork, contraction, flat)
    acting, back = contract_with_way_back(cell, contraction, flat)
    return acting, row -> (NoTangent(), NoTangent(), NoTangent(), back(unthunk(row)))
end

function contract_with_way_back(cell::LayeredNetwork, contraction, flat::AbstractVector)
    n = cell.n_parameters
    arrays = ActingLayers(cell, flat).arrays
    scaled, factor, back = contract_layers(cell.layers, arrays, contraction)
    acting = glue([scaled; [[factor]]])
    return acting, row -> glue(back(cut(row[1:n], cell.shapes), row[n + 1]))
end
