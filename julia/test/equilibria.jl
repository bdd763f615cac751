@testset "the affine cell has a closed form ($solver, $T)" for
    solver in ("tsit5", "anderson", "broyden", "newton", "fixed_point"), T in (Float64, Float32)

    tight = T == Float64 ? TIGHT :
        (abstol = 2.0e-6, reltol = 2.0e-6, ode_abstol = 1.0e-6, ode_reltol = 1.0e-6)
    s = settings(; hidden_layer_sizes = Int[], solver, tight...)
    arrays = random_arrays(s, T)
    x, _, _ = random_batch(s, T)
    found = equilibrium(open_with(s, arrays), x)
    weight, bias, h = arrays[3], arrays[4], encode(s, arrays, x)
    z = (I - weight) \ (weight * h .+ bias)
    @test all(found.converged)
    @test off_by(found.state, z) < (T == Float64 ? 1.0e-9 : 2.0e-5)
    @test off_by(found.output, arrays[5] * z .+ arrays[6]) < (T == Float64 ? 1.0e-9 : 2.0e-5)
    @test all(>(1), found.n_evals)
    @test eltype(found.state) == eltype(found.output) == eltype(found.residual) == T
end

@testset "states are fixed points ($activation, $solver)" for
    (activation, solver) in [
        ("tanh", "tsit5"), ("relu", "anderson"), ("logistic", "newton"), ("identity", "fixed_point"),
    ]

    s = settings(; activation, solver, hidden_layer_sizes = [5, 4])
    arrays = random_arrays(s)
    x, _, _ = random_batch(s)
    found = equilibrium(open_with(s, arrays), x)
    fz = plain_cell(s, arrays, found.state .+ encode(s, arrays, x))
    @test all(found.converged)
    @test off_by(found.state, fz) < 1.0e-10
    @test maximum(found.residual) < 1.0e-10
end

@testset "the residual is that of the returned state ($solver)" for
    solver in ("tsit5", "anderson", "broyden", "newton", "fixed_point"), each in (false, true)

    s = settings(; solver, abstol = 1.0e-2, reltol = 1.0e-2, ode_abstol = 1.0e-6, ode_reltol = 1.0e-3)
    arrays = random_arrays(s)
    x, _, _ = random_batch(s)
    found = equilibrium(open_with(s, arrays), x; each)
    fz = plain_cell(s, arrays, found.state .+ encode(s, arrays, x))
    gap, size_of_f = vec(maximum(abs, fz .- found.state; dims = 1)), vec(maximum(abs, fz; dims = 1))
    @test found.residual ≈ gap ./ size_of_f rtol = 1.0e-8 atol = 1.0e-15
    @test found.converged == ((gap .<= 1.0e-2) .| (gap .<= 1.0e-2 .* size_of_f))
    @test all(found.converged)
end

@testset "alone, a sample does not depend on its batch ($solver)" for
    solver in ("tsit5", "anderson", "broyden", "newton", "fixed_point")

    s = settings(; solver, abstol = 1.0e-2, reltol = 1.0e-2, ode_abstol = 1.0e-6, ode_reltol = 1.0e-3)
    session = open_with(s, random_arrays(s))
    x, _, _ = random_batch(s)
    x .*= exp10.(range(-2, 1, 8))'
    whole = equilibrium(session, x; each = true)
    part = equilibrium(session, x[:, [7, 2, 5]]; each = true)
    @test part.n_evals == whole.n_evals[[7, 2, 5]]
    @test part.state ≈ whole.state[:, [7, 2, 5]] rtol = 1.0e-12
    @test length(unique(whole.n_evals)) > 1
end

@testset "either tolerance ends the search ($solver)" for solver in ("tsit5", "fixed_point")
    s = settings(; n_features = 1, n_outputs = 1, n_state = nothing, hidden_layer_sizes = Int[], solver)
    x = [1.0e-6 1.0 1.0e6]
    for (abstol, reltol) in [(1.0e-4, 0.0), (0.0, 1.0e-4), (1.0e-4, 1.0e-4)]
        session = open_with((; s..., abstol, reltol), [fill(0.5, 1, 1), zeros(1)])
        z = equilibrium(session, x; each = true).state
        gap, size_of_f = vec(abs.(0.5 .* (z .+ x) .- z)), vec(abs.(0.5 .* (z .+ x)))
        allowed = max.(abstol, reltol .* size_of_f)
        @test all(gap .<= allowed .* (1 + 1.0e-9))
        @test (gap .< allowed ./ 100) == [abstol > 0, false, false]
    end
end

@testset "a contractive cell stays below its bound" begin
    s = settings(;
        stability = "contractive", contraction = 0.7, hidden_layer_sizes = [5, 9],
        activation = "relu",
    )
    model = PyDEQ.Model(
        s.n_features, s.n_outputs, s.n_state, s.hidden_layer_sizes, :relu, :contractive, s.contraction,
        s.horizon,
    )
    arrays = random_arrays(s; scale = 30.0)
    flat = PyDEQ.acting_cell(model, PyDEQ.glue(arrays[3:(end - 2)]))
    acting = PyDEQ.cut(flat, model.cell.shapes)
    product = prod(opnorm(acting[i]) for i in 1:2:6)
    @test 0.6 < product <= 0.7 * (1 + 1.0e-12)  # and the bound is nearly attained
    @test acting[2] == arrays[4]  # biases are not scaled
    for W in (arrays[3], randn!(Xoshiro(1), zeros(40, 30)))
        bound = exp(PyDEQ.log_norm_bound(W))
        @test opnorm(W) <= bound * (1 + 1.0e-12)
        @test bound < 1.1 * opnorm(W)
    end
    small = PyDEQ.glue(random_arrays(s; scale = 1.0e-3)[3:(end - 2)])
    @test PyDEQ.acting_cell(model, small) == small  # what is small enough stays
    x, _, _ = random_batch(s)
    found = equilibrium(open_with(s, arrays), x)
    @test all(found.converged)
end

@testset "finite horizon, each = $each" for each in (false, true)
    # du/dt = (W - I) u + W h + b has the solution z + exp((W - I) t) (u(0) - z).
    s = settings(; hidden_layer_sizes = Int[], horizon = 1.5)
    arrays = random_arrays(s)
    x, _, _ = random_batch(s)
    found = equilibrium(open_with(s, arrays), x; each)
    weight, bias, h = arrays[3], arrays[4], encode(s, arrays, x)
    z = (I - weight) \ (weight * h .+ bias)
    u0 = weight * h .+ bias
    @test all(found.converged)
    @test off_by(found.state, z .+ exp(1.5 .* (weight - I)) * (u0 .- z)) < 1.0e-9
    cut_short = equilibrium(open_with((; s..., max_steps = 2), arrays), x; each)
    @test !any(cut_short.converged)
end

@testset "too few steps are reported sample by sample ($solver)" for
    solver in ("tsit5", "anderson", "broyden", "newton", "fixed_point")

    s = settings(; solver, abstol = 1.0e-9, reltol = 1.0e-9, max_steps = 2)
    arrays = random_arrays(s; scale = 1.0)
    arrays = [ndims(a) == 1 ? zero(a) : a for a in arrays]
    x, _, _ = random_batch(s)
    x[:, 3] .= 0  # starts at its equilibrium, 0
    for each in (false, true)
        found = equilibrium(open_with(s, arrays), x; each)
        @test found.converged == (1:8 .== 3)
    end
end

@testset "a sample without equilibrium does not disturb the others ($solver)" for
    solver in ("tsit5", "anderson", "broyden", "newton", "fixed_point"), each in (false, true)

    s = settings(; TWO_SLOPES..., solver, max_steps = 2000)
    x = [1.0 -1.0 2.0 -3.0]
    found = equilibrium(open_with(s, two_slopes(4.0, 0.5)), x; each)
    @test found.converged[[2, 4]] == [true, true]
    @test found.state[[2, 4]] ≈ x[[2, 4]] rtol = 1.0e-9  # 0.5 x / (1 - 0.5)
    if solver in ("tsit5", "fixed_point")
        @test !any(found.converged[[1, 3]])
        @test !any(found.residual[[1, 3]] .<= 1.0e-3)
    end
end

@testset "a cell without stable equilibrium does not hang ($solver)" for
    solver in ("tsit5", "anderson", "broyden", "newton", "fixed_point"), max_steps in (50, 3000)

    s = settings(;
        n_features = 2, n_outputs = 2, n_state = nothing, hidden_layer_sizes = Int[], solver,
        max_steps, abstol = 1.0e-3, reltol = 1.0e-3, ode_abstol = 1.0e-6, ode_reltol = 1.0e-3,
    )
    arrays = [1.5 * Matrix(1.0I, 2, 2), [0.1, -0.2]]
    x = [1.0 -3.0 0.0; 2.0 0.5 1.0]
    for each in (false, true)
        found = equilibrium(open_with(s, arrays), x; each)
        fz = 1.5 .* (found.state .+ x) .+ arrays[2]
        gap, size_of_f = vec(maximum(abs, fz .- found.state; dims = 1)), vec(maximum(abs, fz; dims = 1))
        expected = @. isfinite(gap) & ((gap <= 1.0e-3) | (gap <= 1.0e-3 * size_of_f))
        @test found.converged == expected
        solver in ("tsit5", "fixed_point") && @test !any(found.converged)
        @test all(found.n_evals .<= 40max_steps)
    end
end

@testset "the trajectory iterates the cell" begin
    s = settings()
    arrays = random_arrays(s; scale = 2.0)
    x, _, _ = random_batch(s)
    found = trajectory(open_with(s, arrays), x, 4)
    @test size(found) == (6, 8, 5)
    u = zeros(6, 8)
    for k in 1:5
        u = plain_cell(s, arrays, u .+ encode(s, arrays, x))
        @test found[:, :, k] ≈ u rtol = 1.0e-12
    end
end

@testset "products with the cell's derivative" begin
    s = settings(; hidden_layer_sizes = [5, 4])
    arrays = random_arrays(s)
    x, _, _ = random_batch(s)
    h = encode(s, arrays, x)
    u, along = randn(Xoshiro(2), size(h)...), randn(Xoshiro(3), size(h)...)
    ends = [plain_cell(s, arrays, u .+ side .* along .+ h) for side in (1.0e-5, -1.0e-5)]
    @test off_by(jvp(open_with(s, arrays), x, u, along), (ends[1] .- ends[2]) ./ 2.0e-5) < 1.0e-8
end
