# What holds of each solver by itself, and of the products with the Jacobian.

function small_model(; stability, activation)
    is_monotone = stability === :monotone
    return PyDEQ.Model(
        20, 20, nothing, is_monotone ? Int[] : [30], activation, stability, 0.9, nothing
    )
end

@testset "the solvers agree, and unrolled they end alike ($stability, $activation, $T)" for
    stability in (:contractive, :monotone), activation in (:tanh, :relu, :identity, :logistic),
        T in (Float64, Float32)

    model, rng = small_model(; stability, activation), Xoshiro(1)
    scale = stability === :monotone ? 0.1 : 0.3
    theta = T.(scale .* randn(rng, sum(prod, model.cell_shapes)))
    flat, h = PyDEQ.acting_cell(model, theta), T.(randn(rng, 20, 37))
    tolerance = T == Float64 ? 1.0e-9 : 1.0e-5
    ode_tolerances = (min(tolerance, 1.0e-6), tolerance)
    solver_of(name) =
        PyDEQ.Solver(name, tolerance, tolerance, ode_tolerances..., 2000, :implicit)
    solve(name) = PyDEQ.search(solver_of(name), model.cell, flat, h)
    expected = solve(:newton)
    solvers = stability === :monotone ? (:anderson, :broyden, :tsit5, :peaceman_rachford) :
        (:anderson, :broyden, :tsit5, :fixed_point)
    for name in solvers
        found = solve(name)
        @test all(found.converged)
        @test maximum(abs, found.u .- expected.u) < 10tolerance
        @test found.fu ≈ model.cell(flat, found.u, h)
        again = Ref{PyDEQ.Outcome}()
        @test PyDEQ.unroll(solver_of(name), model.cell, flat, h, nothing, again) === again[].u
        @test maximum(abs, again[].u .- expected.u) < 10tolerance
        @test all(again[].converged)
        # Rounding may decide whether a step is taken, not more: in float64 at ReLU's kink alone.
        is_rounded = name === :tsit5 && activation === :relu
        @test count(again[].n_evals .== found.n_evals) > (T == Float64 ? (is_rounded ? 29 : 36) : 10)
    end
end

@testset "The linear solver solves every column" for stability in (:contractive, :monotone)
    model, rng = small_model(; stability, activation = :tanh), Xoshiro(2)
    flat = PyDEQ.acting_cell(model, 0.1 .* randn(rng, sum(prod, model.cell_shapes)))
    h, b = randn(rng, 20, 37), randn(rng, 20, 37)
    b[:, 5] .= 0
    jacobian() = PyDEQ.Jacobian(PyDEQ.Cell(model.cell, flat, h), h, h)
    for transposed in (false, true)
        n_products = zeros(Int, 37)
        x = PyDEQ.solve_linear!(similar(b), n_products, jacobian(), b, 1.0e-9, transposed)
        rest = x .- PyDEQ.apply!(similar(x), jacobian(), x, transposed) .- b
        @test all(norm.(eachcol(rest)) .<= 1.0e-8 .* norm.(eachcol(b)))
        @test iszero(x[:, 5]) && n_products[5] == 0
        @test all(n_products[[1:4; 6:37]] .> 0)
    end
end

@testset "the gradient of the spectral bound" for shape in ((5, 9), (9, 5), (4, 4))
    weight, direction = randn(Xoshiro(3), shape), randn(Xoshiro(4), shape)
    gradient = only(Zygote.gradient(PyDEQ.log_norm_bound, weight))
    bound(d) = PyDEQ.log_norm_bound(weight .+ d .* direction)
    @test dot(gradient, direction) ≈ (bound(1.0e-6) - bound(-1.0e-6)) / 2.0e-6 rtol = 1.0e-6
end
