# Linear systems, many small ones at once, each column stopping on its own.

"""Directions that are kept. Two take as many products where the cell contracts, and longer."""
const KRYLOV_WINDOW = 1

"""In so many steps a column must halve its residual; and the most steps that it may take."""
const PATIENCE, MAX_KRYLOV_STEPS = 40, 480

"""A step that leaves more than this share of the residual gained nothing."""
const NO_GAIN = 0.999

"""A search under way; the columns that are not done are the first `k`."""
mutable struct Krylov{T}
    const x::Matrix{T}         # (n, B)
    const r::Matrix{T}         # b - A x
    const d::Matrix{T}         # into the product
    const w::Matrix{T}         # and out of it
    const p::Array{T, 3}       # (n, window, B): directions
    const q::Array{T, 3}       # A p, orthonormal
    const size::Vector{T}      # norm of r
    const before::Vector{T}    # what it was some steps ago
    const target::Vector{T}
    const turn::Vector{Bool}   # the last step gained next to nothing
    const index::Vector{Int}   # which column of b it is
    k::Int
end

function Krylov(b::AbstractMatrix{T}, rtol, pool) where {T}
    n, k = size(b)
    norms = T[sqrt(dot_of(view(b, :, j), view(b, :, j))) for j in 1:k]
    rtol = max(T(rtol), 10 * eps(T))
    window() = fill!(borrow(pool, T, n, KRYLOV_WINDOW, k), 0)
    return Krylov{T}(
        fill!(borrow(pool, T, n, k), 0), borrow_copy(pool, b), borrow(pool, T, n, k),
        borrow(pool, T, n, k), window(), window(), norms, copy(norms), rtol .* norms,
        fill(false, k), collect(1:k), k,
    )
end

"""
    solve_linear!(x, n_products, jacobian, b, rtol, transposed, pool = nothing)

Solve ``(I - J) x = b`` for every column, or ``(I - J^T) x = b``, by ORTHOMIN (Vinsome 1976; Young
and Jea 1980).

Each step makes the residual as small as it can be along r and the `KRYLOV_WINDOW` directions
before, which converges wherever the symmetric part of the map is definite, as that of I - J is if J
contracts (Eisenstat, Elman and Schultz 1983). A step that gains nothing, as where the map turns r
by a right angle, is followed by one along A r instead (ORTHODIR's direction).

A column is solved when its residual's 2-norm is at most `rtol` times that of its `b` (taken as at
least ten times the type's precision); it ends, too, when `PATIENCE` steps did not halve its
residual, or after `MAX_KRYLOV_STEPS`. Columns that have ended leave: `jacobian` is void afterwards.

`x`, `b` are (width, k); `n_products` (k,) gains the products that each column took.
"""
function solve_linear!(
        x, n_products, jacobian::AbstractJacobian{T}, b::AbstractMatrix{T}, rtol, transposed, pool = nothing,
    ) where {T}
    s = Krylov(b, rtol, pool)
    leave!(x, s, jacobian, j -> !(s.size[j] > s.target[j]))
    for step in 1:MAX_KRYLOV_STEPS
        k = s.k
        k == 0 && break
        newest, oldest = mod1(step - 1, KRYLOV_WINDOW), mod1(step, KRYLOV_WINDOW)
        for j in 1:k
            copyto!(view(s.d, :, j), s.turn[j] ? view(s.q, :, newest, j) : view(s.r, :, j))
        end
        apply!(front(s.w, k), jacobian, front(s.d, k), transposed)
        checks = step % PATIENCE == 0 || step == MAX_KRYLOV_STEPS
        is_done = map(1:k) do j
            n_products[s.index[j]] += 1
            extends = extend!(s, oldest, j)
            stalls = checks && s.size[j] > s.before[j] / 2
            checks && (s.before[j] = s.size[j])
            !(extends && s.size[j] > s.target[j]) || stalls || step == MAX_KRYLOV_STEPS
        end
        leave!(x, s, jacobian, j -> is_done[j])
    end
    return x
end

"""Go along one more direction in column `j`. False: there is nowhere to go."""
function extend!(s::Krylov{T}, slot, j) where {T}
    x, r = view(s.x, :, j), view(s.r, :, j)
    q, p = view(s.w, :, j), view(s.d, :, j)
    q .= p .- q  # A d; and A is I - J
    overlaps = ntuple(i -> dot_of(view(s.q, :, i, j), q), KRYLOV_WINDOW)
    for i in 1:KRYLOV_WINDOW
        subtract!(q, overlaps[i], view(s.q, :, i, j))
        subtract!(p, overlaps[i], view(s.p, :, i, j))
    end
    len = sqrt(dot_of(q, q))
    # What is left of w after its overlaps may be rounding alone.
    rounding = 10 * eps(T) * (s.turn[j] ? one(T) : s.size[j])
    len > rounding && isfinite(len) || return false
    q .*= inv(len)
    p .*= inv(len)
    copyto!(view(s.q, :, slot, j), q)
    copyto!(view(s.p, :, slot, j), p)
    along = dot_of(q, r)
    subtract!(r, along, q)
    subtract!(x, -along, p)
    size_before = s.size[j]
    s.size[j] = sqrt(dot_of(r, r))
    s.turn[j] = s.size[j] > T(NO_GAIN) * size_before
    return true
end

"""Write the solutions of the columns that are done to `x`; the last ones take their places."""
function leave!(x, s::Krylov, jacobian::AbstractJacobian, is_done)
    for j in (s.k):-1:1
        is_done(j) || continue
        copyto!(view(x, :, s.index[j]), view(s.x, :, j))
        from = s.k
        s.k -= 1
        from == j && continue
        for a in (s.x, s.r, s.p, s.q, s.size, s.before, s.target, s.turn, s.index)
            move_column!(a, from, j)
        end
        move!(jacobian, from, j)
    end
    return nothing
end

"""
The same on a GPU. No column leaves before the last has ended, but a column that has ended stays as it
is: what it would go along is made zero.
"""
function solve_linear!(
        x, n_products, jacobian::AbstractJacobian{T}, b::AbstractMatrix{T}, rtol, transposed, ::DevicePool,
    ) where {T}
    fill!(x, 0)
    r, p, q, w = copy(b), zero(b), zero(b), similar(b)
    size_of = sqrt.(dots(r, r))
    target = max(T(rtol), 10 * eps(T)) .* size_of
    before, turn = size_of, fill!(similar(size_of, Bool), false)
    active = size_of .> target
    for step in 1:MAX_KRYLOV_STEPS
        on_host = vec(Array(active))
        any(on_host) || break
        n_products[on_host] .+= 1
        d = ifelse.(turn, q, r)
        apply!(w, jacobian, d, transposed)
        w .= d .- w
        overlap = dots(q, w)
        w .-= overlap .* q
        d .-= overlap .* p
        len = sqrt.(dots(w, w))
        rounding = 10 * eps(T) .* ifelse.(turn, one(T), size_of)
        extends = @. active & (len > rounding) & isfinite(len)
        scale = ifelse.(extends, inv.(len), zero(T))
        # (What is not finite would stay so times zero.)
        q, p = ifelse.(extends, scale .* w, zero(T)), ifelse.(extends, scale .* d, zero(T))
        along = dots(q, r)
        r .-= along .* q
        x .+= along .* p
        size_before, size_of = size_of, sqrt.(dots(r, r))
        turn = size_of .> T(NO_GAIN) .* size_before
        active = extends .& (size_of .> target)
        if step % PATIENCE == 0
            active = active .& .!(size_of .> before ./ 2)
            before = size_of
        end
    end
    return x
end
