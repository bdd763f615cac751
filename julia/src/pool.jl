# Arrays that are used again from batch to batch.

"""What lends arrays, where those of a session are: see [`borrow`](@ref)."""
abstract type AbstractPool end

"""
    Pool()

Lends arrays of the CPU, whose entries are undefined: see [`borrow`](@ref). A batch of MNIST works in some 10 MB of
them; made anew each time they would be a third of its time, in Julia's garbage collector.

After [`rewind!`](@ref) the same arrays are lent once more, in the same order. So it holds no more
than one batch takes, whatever the sizes of the batches.
"""
mutable struct Pool <: AbstractPool
    const arrays::Vector{Any}
    n_lent::Int
    const vectors::Vector{Any}  # for `borrow_samples`
    n_vectors_lent::Int
end

Pool() = Pool(Any[], 0, Any[], 0)

"""Take back all that was lent: what still uses it must be done."""
function rewind!(pool::Pool)
    pool.n_lent = pool.n_vectors_lent = 0
    return pool
end

"""
    DevicePool(like)

Makes arrays of the kind of the vector `like`, which is on a GPU: there the memory of those that are not
used any more is lent again by the GPU's own package.
"""
struct DevicePool{V <: AbstractVector} <: AbstractPool
    like::V
end

rewind!(pool::DevicePool) = pool

"""A pool for arrays where those of `flat` are."""
pool_like(flat::AbstractVector) = is_on_host(flat) ? Pool() : DevicePool(similar(flat, 0))

"""The type of the arrays of N dimensions that the pool lends."""
array_type(::Union{Pool, Nothing}, ::Type{T}, ::Val{N}) where {T, N} = Array{T, N}
array_type(pool::DevicePool, ::Type{T}, ::Val{N}) where {T, N} =
    typeof(similar(pool.like, T, ntuple(_ -> 0, N)))

"""
    borrow(pool, T, dims...) -> Array{T}

Return an array of that type and size from the pool, or, if `pool` is nothing, a new one on the CPU.
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
borrow(pool::DevicePool, ::Type{T}, dims::Int...) where {T} = similar(pool.like, T, dims)

"""
    borrow_samples(pool, T, dims...)

The same for arrays whose last dimension is other and other, as samples leave a search: what was lent for
as many serves fewer. On the CPU it is a reshaped view of a vector of the pool's.
"""
function borrow_samples(pool::Pool, ::Type{T}, dims::Vararg{Int, N}) where {T, N}
    (; vectors) = pool
    at = pool.n_vectors_lent += 1
    n = prod(dims)
    at > length(vectors) && push!(vectors, nothing)
    vector = vectors[at]
    if !(vector isa Vector{T} && length(vector) >= n)
        vector = vectors[at] = Vector{T}(undef, n)
    end
    return reshape(view(vector::Vector{T}, 1:n), dims)
end

borrow_samples(pool::DevicePool, ::Type{T}, dims::Int...) where {T} = borrow(pool, T, dims...)

"""Do the `work`; what it borrows is taken back at its end."""
function meanwhile(work, pool::Pool)
    lent = pool.n_lent, pool.n_vectors_lent
    made = work()
    pool.n_lent, pool.n_vectors_lent = lent
    return made
end

meanwhile(work, ::DevicePool) = work()

"""An array like `a`, lent."""
borrow_like(pool, a::AbstractArray{T}) where {T} = borrow(pool, T, size(a)...)

"""A copy of `a`, lent."""
borrow_copy(pool, a::AbstractArray) = copyto!(borrow_like(pool, a), a)
