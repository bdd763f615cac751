# Plain iteration, and Peaceman-Rachford splitting for the monotone cell.

"""
    FixedPoint(u)

Plain iteration: u <- f(u).
"""
struct FixedPoint <: SearchMethod end

FixedPoint(::Matrix) = FixedPoint()

move!(::FixedPoint, ::Int, ::Int) = nothing

function step!(::FixedPoint, cell, s::Search)
    u, fu = front(s.u, s.k), front(s.fu, s.k)
    copyto!(u, fu)
    evaluate!(fu, cell, u, front(s.h, s.k))
    view(s.n_evals, 1:(s.k)) .+= 1
    return nothing
end

"""
    PeacemanRachford(cell, s)

Peaceman-Rachford splitting for the monotone cell (Winston and Kolter 2020, algorithm 2, with step
1: there the activation itself is the resolvent needed).

With s = h + b, an iteration from w, of which act(w) is known, is v = 2 act(w) - w,
z = (2 I - W)^-1 (v + s) and w <- 2 z - v. By the second, W z + s = 2 z - v, the next w: so act(w)
is the cell at the state z, and each iteration takes one product with a matrix.
"""
struct PeacemanRachford{T} <: SearchMethod
    resolvent::Matrix{T}
    w::Matrix{T}  # (width, B)
    v::Matrix{T}
end

function PeacemanRachford(cell::Cell{T}, s) where {T}
    weight, bias = only(cell.weights), only(cell.biases)
    w = weight * s.u .+ s.h .+ bias
    return PeacemanRachford{T}(inv(2I - weight), w, similar(w))
end

move!(method::PeacemanRachford, from::Int, to::Int) = move_column!(method.w, from, to)

function step!(method::PeacemanRachford, cell::Cell{T}, s::Search) where {T}
    k, bias = s.k, only(cell.biases)
    z, fu, h = front(s.u, k), front(s.fu, k), front(s.h, k)
    v, w = front(method.v, k), front(method.w, k)
    v .= 2 .* fu .- w
    w .= v .+ h .+ bias
    mul!(z, method.resolvent, w)
    w .= 2 .* z .- v
    copyto!(fu, w)
    activate!(fu, cell.σ, zero(T))
    view(s.n_evals, 1:k) .+= 1
    return nothing
end
