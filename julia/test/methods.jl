# The methods of OrdinaryDiffEq's that an extension adds.

@testset "solver $method finds the equilibrium and its gradient" for method in PyDEQ.ODE_METHODS
    tolerances = (abstol = 1.0e-7, reltol = 1.0e-7, ode_abstol = 1.0e-7, ode_reltol = 1.0e-7)
    s = settings(; solver = string(method), tolerances...)
    arrays, (x, target, weight) = random_arrays(s), random_batch(s)
    sessions = open_with(s, arrays), open_with(settings(; solver = "newton"), arrays)
    found, expected = (equilibrium(session, x; each = true) for session in sessions)
    @test all(found.converged)
    @test off_by(found.state, expected.state) < 1.0e-5
    # No answer depends on its batch.
    @test equilibrium(first(sessions), x[:, 3:3]; each = true).state == found.state[:, 3:3]
    (loss, g), (expected_loss, expected_g) =
        (loss_and_grad(session, x, target, weight, probe_of(s)) for session in sessions)
    @test loss ≈ expected_loss rtol = 1.0e-5
    @test all(off_by.(g, expected_g) .< 1.0e-5)
end

# Its gradient goes the way of Tsit5's; it takes a minute to compile for each method.
@testset "a finite horizon by another method" begin
    states = map(("bs3", "tsit5")) do solver
        s = settings(; solver, horizon = 1.5, ode_abstol = 1.0e-8, ode_reltol = 1.0e-8)
        equilibrium(open_with(s, random_arrays(s)), first(random_batch(s))).state
    end
    @test off_by(states...) < 1.0e-6
end

@testset "a sample that is lost does not stop those that share its steps" begin
    tolerances = (abstol = 1.0e-4, reltol = 1.0e-4, ode_abstol = 1.0e-4, ode_reltol = 1.0e-4)
    s = settings(; TWO_SLOPES..., solver = "bs3", tolerances..., max_steps = 4000, alpha = 0.0)
    x = [1.0 -1.0 2.0 -2.0]  # above 0 the state grows without end
    session = open_with(s, two_slopes(4.0, 0.5))
    load_data!(session, x, -x, ones(4))
    report = train_batch!(session, 1:4, ones(1))
    @test report.n_failed == 2 && report.weight == 2
    # Below, z = (z + x) / 2, so z = x.
    @test report.loss ≈ sum(abs2, 2 .* x[x .< 0]) / 2 rtol = 1.0e-3
end

@testset "what such a method has not" begin
    s = settings(; solver = "bs3", adjoint = "unrolled")
    @test_throws "adjoint=\"unrolled\" for tsit5" open_with(s, random_arrays(s))
    @test_throws "needs the packages" PyDEQ.ode_algorithm(Val(:euler))
end
