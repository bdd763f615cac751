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

"""
    ActingLayers(network, flat, pool = nothing)

The layers with their parameters as they act, for arrays on the host. What they make is of the
[`Pool`](@ref), or of one of their own.
"""
struct ActingLayers{T <: AbstractFloat, P <: AbstractPool}
    network::LayeredNetwork
    arrays::Vector{Any}      # all parameters, kernels as `inner_kernel` has them
    parameters::Vector{Any}  # those of each layer
    factor::T                # of the own layers of layers
    pool::P
end

function ActingLayers(network::LayeredNetwork, flat::AbstractVector{T}, pool = nothing) where {T}
    n = network.n_parameters
    arrays = Any[inner_kernel(array) for array in cut(view(flat, 1:n), network.shapes)]
    factor = length(flat) > n ? last(flat) : one(T)
    parameters = Vector{Any}(each_with_parameters(network.layers, arrays))
    return ActingLayers(network, arrays, parameters, factor, something(pool, Pool()))
end

"""
Return what the layers make of `a`, and each layer's memory for the way back. What is to be added to the
first layer's value, if anything, is `h`. All are in the order of layers.
"""
function forward(acting::ActingLayers, a, h = nothing)
    (; pool) = acting
    memories = Any[]
    for (layer, ps) in zip(acting.network.layers, acting.parameters)
        a, memory = forward(layer, pool, ps, a)
        push!(memories, memory)
        layer isa NestedLayer && (a = scaled(acting, a))
        h !== nothing && length(memories) == 1 && (a = elementwise(+, pool, a, h))
    end
    return a, memories
end

function scaled((; factor, pool)::ActingLayers, a)
    return factor == 1 ? a : elementwise(entry -> factor * entry, pool, a)
end

"""Samples that are columns, in the order of layers; nothing stays that."""
given_samples(acting::ActingLayers, v) = inner_order(acting.pool, v, acting.network.given)
given_samples(::ActingLayers, ::Nothing) = nothing
gradient_samples(acting::ActingLayers, row) = inner_order(acting.pool, row, acting.network.gives)

"""Samples `a` of the shape `given` or `gives`, as columns in an array of the pool's."""
function as_columns(acting::ActingLayers, a, shape::Dims)
    return outer_order!(acting.pool, borrow(acting.pool, eltype(a), prod(shape), n_samples(a)), a, shape)
end

"""
What goes into the cell's first layer, and what is added to its value, as columns in arrays of the pool's;
without `h` the columns are what goes in.
"""
cell_input(::ActingLayers, v, ::Nothing) = v, nothing
function cell_input(cell::ActingLayers, u, h)
    v = borrow_samples(cell.pool, eltype(u), size(u)...)
    cell.network.is_monotone && return copyto!(v, u), copyto!(borrow_samples(cell.pool, eltype(h), size(h)...), h)
    v .= u .+ h
    return v, nothing
end

"""
    forward_cell(acting, u, h) -> (value, memories)

Return f(u, h) in the order of layers, and each layer's memory.
"""
function forward_cell(acting::ActingLayers, u, h)
    v, h = cell_input(acting, u, h)
    return forward(acting, given_samples(acting, v), given_samples(acting, h))
end

"""So many samples at a time are evaluated: what layers make of them stays in the CPU's caches."""
const BLOCK = 16

"""
    write_value!(out, acting, u, h = nothing)

Write the value at `u`, of a cell f(u, h), to `out`; all are columns.
"""
function write_value!(out, acting::ActingLayers, u, h = nothing)
    for first_of in 1:BLOCK:size(u, 2)
        block = first_of:min(first_of + BLOCK - 1, size(u, 2))
        meanwhile(acting.pool) do
            value, _ = forward_cell(acting, view(u, :, block), h === nothing ? nothing : view(h, :, block))
            outer_order!(acting.pool, view(out, :, block), value, acting.network.gives)
        end
    end
    return out
end

"""Return ``(\\partial value / \\partial v)^T`` times the `row`; both are in the order of layers."""
function pull(acting::ActingLayers, memories, row)
    for (i, layer) in Iterators.reverse(enumerate(acting.network.layers))
        layer isa NestedLayer && (row = scaled(acting, row))
        row = pull(layer, acting.pool, acting.parameters[i], memories[i], row)
    end
    return row
end

"""Write the same of columns to the columns `out`."""
function write_pulled!(out, acting::ActingLayers, memories, row::AbstractMatrix)
    meanwhile(acting.pool) do
        outer_order!(acting.pool, out, pull(acting, memories, gradient_samples(acting, row)), acting.network.given)
    end
    return out
end

"""
    pull_gradients(acting, memories, row, wants_row) -> (flat, row)

Return the gradient in the flat parameters as they act and, where it is wanted, what
[`write_pulled!`](@ref) writes.
"""
function pull_gradients(acting::ActingLayers, memories, row::AbstractMatrix{S}, wants_row) where {S}
    (; network, pool, parameters) = acting
    row = gradient_samples(acting, row)
    found, to_factor = Any[], zero(S)
    for (i, layer) in Iterators.reverse(enumerate(network.layers))
        if layer isa NestedLayer
            to_factor += sum(elementwise(*, pool, row, only(last(memories[i]))))
            row = scaled(acting, row)
        end
        if i == 1 && !wants_row
            prepend!(found, gradients(layer, pool, parameters[i], memories[i], row))
        else
            row, own = pull_with_gradients(layer, pool, parameters[i], memories[i], row)
            prepend!(found, own)
        end
    end
    flat = glue(push!(Any[outer_kernel(gradient) for gradient in found], S[to_factor]))
    return flat, wants_row ? as_columns(acting, row, network.given) : nothing
end

"""The value (n_out, n) at `v` (n_in, n), with the parameters `flat`."""
function (network::LayeredNetwork)(flat::AbstractVector, v::AbstractMatrix)
    isempty(network.layers) && return v
    return write_value!(similar(v, prod(network.gives), size(v, 2)), ActingLayers(network, flat), v)
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
function value_and_pull(network::LayeredNetwork, flat, v, pool = nothing)
    isempty(network.layers) && return v, (row, _) -> (zero(flat), row)
    acting = ActingLayers(network, flat, pool)
    value, memories = forward_cell(acting, v, nothing)
    value = as_columns(acting, value, network.gives)
    function back(row, wants_row)
        gradient, to_v = pull_gradients(acting, memories, row, wants_row)
        return gradient[1:length(flat)], to_v
    end
    return value, back
end

function with_way_back(network::LayeredNetwork, flat, v, pool)
    value, pull = value_and_pull(network, flat, v, pool)
    function back!(gradient, row, wants_row)
        found, to_v = pull(row, wants_row)
        copyto!(gradient, found)
        return to_v
    end
    return value, back!
end

on_host(network::LayeredNetwork, flat, h, pool = nothing) = ActingLayers(network, flat, pool)

evaluate!(out, cell::ActingLayers, u, h) = write_value!(out, cell, u, h)

"""How far from the real axis a derivative is carried: its square is nothing beside 1."""
tiny_step(::Type{Float64}) = 1.0e-30
tiny_step(::Type{Float32}) = 1.0f-10

"""
    LayeredJacobian(cell, u, h)

df/du at the k samples of `u`: see [`apply!`](@ref).
"""
mutable struct LayeredJacobian{T, C <: ActingLayers{T}} <: AbstractJacobian{T}
    const cell::C
    v::AbstractMatrix{T}  # what goes into the first layer
    h::Union{AbstractMatrix{T}, Nothing}  # what is added to its value
    memories::Vector{Any}
end

function LayeredJacobian(cell::ActingLayers{T}, u, h) where {T}
    v, h = cell_input(cell, u, h)
    _, memories = forward(cell, given_samples(cell, v), given_samples(cell, h))
    return LayeredJacobian(cell, v, h, memories)
end

# Without a pool the memories are for a moment, as those of each of Newton's steps are: not for a batch.
linearize(cell::ActingLayers, u, h, ::Nothing = nothing) = LayeredJacobian(with_pool(cell, Pool()), u, h)
linearize(cell::ActingLayers, u, h, ::AbstractPool) = LayeredJacobian(cell, u, h)

with_pool((; network, arrays, parameters, factor)::ActingLayers, pool) =
    ActingLayers(network, arrays, parameters, factor, pool)

function apply!(out, jacobian::LayeredJacobian{T}, v, transposed::Bool) where {T}
    (; cell) = jacobian
    keep!(jacobian, size(v, 2))
    transposed && return write_pulled!(out, cell, jacobian.memories, v)
    meanwhile(cell.pool) do
        along = given_samples(cell, complex.(jacobian.v, tiny_step(T) .* v))
        value, _ = forward(cell, along, given_samples(cell, jacobian.h))
        outer_order!(cell.pool, out, imag.(value) ./ tiny_step(T), cell.network.gives)
    end
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
function first_samples(a::AbstractArray, k)
    shape = size(a)[1:(end - 1)]
    return reshape(view(vec(a), 1:(prod(shape) * k)), shape..., k)
end

move_column!(memories::Vector{Any}, from::Int, to::Int) =
    foreach(memory -> move_column!(memory, from, to), memories)

function move_column!(a::AbstractArray, from::Int, to::Int)
    n = length(a) ÷ n_samples(a)
    to_place, from_place = (to - 1) * n, (from - 1) * n
    @inbounds @simd ivdep for i in 1:n  # (of such arrays copyto! makes a copy of the whole first)
        a[to_place + i] = a[from_place + i]
    end
    return nothing
end

"""
The penalty's estimate for a cell of layers. Its own gradient is the derivative of the cell's
gradient along a direction: as second derivatives commute, that of ``p^T J(v) s`` with s constant.
"""
function estimate_with_way_back(acting::ActingLayers{T}, u, h, probe) where {T}
    v = u .+ h
    _, memories = forward_cell(acting, v, nothing)
    rows, step = probe .+ zero(v), tiny_step(T)
    row = write_pulled!(similar(v), acting, memories, rows)
    function back(cotangent)
        direction = 2 .* cotangent .* row
        # A direction of size 1 keeps clear of what is too small for a number.
        size_of = maximum(abs, direction)
        size_of > 0 || return zeros(T, acting.network.n_parameters + 1), zero(v)
        _, memories = forward_cell(acting, complex.(v, (step / size_of) .* direction), nothing)
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
    _, memories = forward_cell(cell, u, h)
    gradient, to_u = pull_gradients(cell, memories, row, true)
    to_flat .+= view(gradient, eachindex(to_flat))
    return to_u, cell.network.is_monotone ? after_first(cell, memories, row) : to_u
end

function acting(network::LayeredNetwork, model::Model, flat, h, pool)
    n = network.n_parameters
    network.is_monotone && return acting_monotone(network, flat, pool)
    model.stability === :contractive || return ActingLayers(network, flat, pool), n, (to_own, to_flat) -> nothing
    acts, back = contract_with_way_back(network, model.contraction, flat)
    return ActingLayers(network, acts, pool), n + 1, (to_own, to_flat) -> copyto!(to_own, back(to_flat))
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
    arrays = Any[copy(array) for array in cut(flat, cell.shapes)]
    scaled, factor, back = contract_layers(cell.layers, arrays, contraction)
    acting = glue([scaled; [[factor]]])
    return acting, row -> glue(back(cut(row[1:n], cell.shapes), row[n + 1]))
end
