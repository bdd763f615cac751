# Arrays that are used again from batch to batch.

"""
    Pool()

Lends arrays, whose entries are undefined: see [`borrow`](@ref). A batch of MNIST works in some 10 MB of
them; made anew each time they would be a third of its time, in Julia's garbage collector.

After [`rewind!`](@ref) the same arrays are lent once more, in the same order. So it holds no more
than one batch takes, whatever the sizes of the batches.
"""
mutable struct Pool
    const arrays::Vector{Any}
    n_lent::Int
end

Pool() = Pool(Any[], 0)

"""Take back all that was lent: what still uses it must be done."""
function rewind!(pool::Pool)
    pool.n_lent = 0
    return pool
end

"""
    borrow(pool, T, dims...) -> Array{T}

Return an array of that type and size from the [`Pool`](@ref), or, if `pool` is nothing, a new one.
"""
function borrow(pool::Pool, ::Type{T}, dims::Vararg{Int, N}) where {T, N}
    (; arrays) = pool
    at = pool.n_lent += 1
    at > length(arrays) && push!(arrays, nothing)
    array = arrays[at]
    array isa Array{T, N} && size(array) == dims && return array
    array = arrays[at] = Array{T, N}(undef, dims)
    return array
end

borrow(::Nothing, ::Type{T}, dims::Int...) where {T} = Array{T}(undef, dims)

"""An array like `a`, lent."""
borrow_like(pool, a::AbstractArray{T}) where {T} = borrow(pool, T, size(a)...)

"""A copy of `a`, lent."""
borrow_copy(pool, a::AbstractArray) = copyto!(borrow_like(pool, a), a)
