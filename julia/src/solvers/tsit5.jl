# Tsit5 with steps of its own for each sample. The same coefficients as OrdinaryDiffEqTsit5's, from
# Ch. Tsitouras, Computers & Mathematics with Applications 62 (2011) 770-775.

const TSIT5_STAGES = (
    (0.161,),
    (-0.008480655492356989, 0.335480655492357),
    (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
    (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
    (
        5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401,
        -0.028269050394068383,
    ),
    (
        0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
        2.324710524099774,
    ),
)

const TSIT5_ERROR = (
    0.0017800110522257773, 0.0008164344596567463, -0.007880878010261994, 0.1447110071732629,
    -0.5823571654525552, 0.45808210592918686, -0.015151515151515152,
)

const SAFETY, MIN_FACTOR, MAX_FACTOR = 0.9, 0.2, 10.0
const BETA1, BETA2 = 7 / 50, 2 / 25
const FIRST_ERROR = 1.0e-4
const SHARE_OF_DU = 0.1

"""
    StepControl(solver, u, fu)

OrdinaryDiffEq's PI control of the steps, for each column of the states `u`, where f is `fu`.

Near the steady state any step looks accurate, so a controller that only keeps the error below the
ODE's tolerances lets the step grow past the method's stability limit, and the search hovers at that
tolerance instead of converging. The error must therefore also stay below a share of du.
"""
struct StepControl{T}
    dt::Vector{T}
    last_error::Vector{T}
    abstol::T
    reltol::T
end

function StepControl(solver::Solver, states::AbstractMatrix{T}, values::AbstractMatrix{T}) where {T}
    abstol, reltol = T(solver.ode_abstol), T(solver.ode_reltol)
    # Hairer, Norsett and Wanner II.4, with the field's Lipschitz constant taken as 1: the field is
    # f(u) - u, so it is of that order and the evaluation that would measure it is saved.
    dt = map(axes(states, 2)) do j
        u, fu = view(states, :, j), view(values, :, j)
        total = sum(i -> abs2((fu[i] - u[i]) / (abstol + reltol * abs(u[i]))), eachindex(u))
        (T(0.01) / max(sqrt(total / length(u)), T(1.0e-10)))^T(1 / 5)
    end
    return StepControl{T}(dt, fill(T(FIRST_ERROR), length(dt)), abstol, reltol)
end

"""
    control!(control, u, new_u, du, error_of, j) -> Bool

Return whether the step of column `j` from `u` is accepted, and set the length of its next.
"""
function control!(control::StepControl{T}, u, new_u, du, error_of, j) where {T}
    dt, n = control.dt[j], length(u)
    scaled = zero(T)
    @inbounds @simd for i in eachindex(u, new_u, error_of)
        scale = control.abstol + control.reltol * max(abs(u[i]), abs(new_u[i]))
        scaled += abs2(dt * error_of[i] / scale)
    end
    e = sqrt(scaled / n)
    e = max(e, dt * sqrt(dot_of(error_of, error_of)) / (T(SHARE_OF_DU) * sqrt(dot_of(du, du))))
    e = isfinite(e) ? max(e, T(1.0e-12)) : T(1.0e12)
    factor = T(SAFETY) * e^-T(BETA1)
    if e <= 1
        factor = clamp(factor * control.last_error[j]^T(BETA2), T(MIN_FACTOR), T(MAX_FACTOR))
        control.last_error[j] = max(e, T(FIRST_ERROR))
    else
        factor = clamp(factor, T(MIN_FACTOR), one(T))
    end
    control.dt[j] = dt * factor
    return e <= 1
end

"""
    FollowODE(solver, s, pool)

The neural ODE du/dt = f(u) - u by Tsit5, until it is steady, each sample with its own steps.
"""
struct FollowODE{T} <: SearchMethod
    slopes::Vector{Matrix{T}}  # seven of (width, B)
    u::Matrix{T}               # a stage, and at last what is tried
    fu::Matrix{T}
    control::StepControl{T}
end

function FollowODE(solver::Solver, s::Search, pool)
    slopes = [borrow_like(pool, s.u) for _ in 1:7]
    tried = borrow_like(pool, s.u), borrow_like(pool, s.u)
    return FollowODE(slopes, tried..., StepControl(solver, s.u, s.fu))
end

function move!(method::FollowODE, from::Int, to::Int)
    foreach(a -> move_column!(a, from, to), (method.control.dt, method.control.last_error))
    return nothing
end

function step!(method::FollowODE{T}, cell, s::Search) where {T}
    k = s.k
    u, fu, h = front(s.u, k), front(s.fu, k), front(s.h, k)
    stage, f = front(method.u, k), front(method.fu, k)
    slopes = [front(slope, k) for slope in method.slopes]
    dt = view(method.control.dt, 1:k)'
    slopes[1] .= fu .- u
    for (i, row) in enumerate(TSIT5_STAGES)
        combine!(stage, slopes, T.(row))
        stage .= u .+ dt .* stage
        evaluate!(f, cell, stage, h)
        slopes[i + 1] .= f .- stage
    end
    error_of = slopes[2]  # it is not needed again
    combine!(error_of, slopes, T.(TSIT5_ERROR))
    for j in 1:k
        s.n_evals[j] += 6
        columns = map(a -> view(a, :, j), (u, stage, slopes[1], error_of))
        control!(method.control, columns..., j) || continue
        copyto!(columns[1], columns[2])
        copyto!(view(fu, :, j), view(f, :, j))
    end
    return nothing
end

"""Write the sum of the slopes by their coefficients to `out`, which may be one of them."""
function combine!(out, slopes, row::Tuple)
    @inbounds for j in axes(out, 2)
        @simd for i in axes(out, 1)
            total = zero(eltype(out))
            for m in eachindex(row)
                total += row[m] * slopes[m][i, j]
            end
            out[i, j] = total
        end
    end
    return out
end
