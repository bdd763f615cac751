# Sessions on a GPU's arrays: JLArrays are on the CPU, but forbid what a GPU cannot do.

using JLArrays: JLArray

struct JLDevice <: PyDEQ.Device end
PyDEQ.to_device(::JLDevice, array::AbstractArray) = JLArray(Array(array))

"""What a session makes of one batch, and of its steps."""
function results_on(device, s, arrays, batch; depth = 0)
    T = eltype(first(arrays))
    session = open_with((; s..., device), arrays)
    found = equilibrium(session, first(batch))
    loss, gradient = loss_and_grad(session, batch..., probe_of(s, T), depth)
    load_data!(session, batch...)
    saved = snapshot(session)
    reports = [train_batch!(session, [3, 1, 8, 5, 2], probe_of(s, T), depth) for _ in 1:3]
    moved = (get_arrays(session), optimizer_state(session)...)
    restore!(session, saved)
    path = trajectory(session, first(batch), 3)
    along = jvp(session, first(batch), found.state, sin.(found.state))
    return (; found, loss, gradient, reports, moved, path, along, weights = get_arrays(session))
end

function agree(a, b, tolerance)
    near(x, y) = maximum(abs, x .- y; init = 0.0) <= tolerance * max(maximum(abs, y; init = 0.0), 1.0)
    @test near(a.found.state, b.found.state) && near(a.found.output, b.found.output)
    @test a.found.converged == b.found.converged
    @test near(a.loss, b.loss) && all(near.(a.gradient, b.gradient))
    @test all(near(x.loss, y.loss) && x.weight ≈ y.weight for (x, y) in zip(a.reports, b.reports))
    @test [r.n_failed for r in a.reports] == [r.n_failed for r in b.reports]
    @test all(all(near.(x, y)) for (x, y) in zip(a.moved, b.moved))
    @test near(a.path, b.path) && near(a.along, b.along) && a.weights == b.weights
    return nothing
end

const EVERY_WAY = [
    [
        (stability, "implicit", solver) for stability in ("contractive", "none")
            for solver in ("anderson", "broyden", "newton", "fixed_point", "tsit5")
    ]
    [("monotone", "implicit", solver) for solver in ("peaceman_rachford", "anderson")]
    ("jacobian", "implicit", "anderson")
    ("contractive", "jfb", "anderson")
    ("monotone", "unrolled", "peaceman_rachford")
    ("none", "implicit", "vcab3")
]

@testset "a GPU's arrays give the CPU's values ($stability, $adjoint, $solver)" for
    (stability, adjoint, solver) in EVERY_WAY

    s = settings(;
        stability, adjoint, solver, jacobian_penalty = 0.1, loss = "log_loss",
        hidden_layer_sizes = stability == "monotone" ? Int[] : [7],
    )
    arrays = random_arrays(s)
    batch = random_batch(s)
    agree(results_on(JLDevice(), s, arrays, batch), results_on("cpu", s, arrays, batch), 1.0e-8)
end

@testset "a GPU's arrays give the CPU's values (steps of fixed number)" begin
    s = settings(; init = "zero", solver = "anderson", train_encoder = false)
    arrays, batch = random_arrays(s), random_batch(s)
    on_gpu = results_on(JLDevice(), s, arrays, batch; depth = 4)
    agree(on_gpu, results_on("cpu", s, arrays, batch; depth = 4), 1.0e-8)
end

@testset "on a GPU's arrays, too, samples that fail are left out" begin
    s = settings(; TWO_SLOPES..., solver = "anderson", alpha = 0.0, max_steps = 60)
    x = [1.0 -1.0 2.0 -2.0 -0.5 3.0 -3.0 -0.2]
    arrays, batch = two_slopes(4.0, 0.5), (x, -x, ones(8))
    on_gpu, on_cpu = results_on(JLDevice(), s, arrays, batch), results_on("cpu", s, arrays, batch)
    @test on_gpu.found.converged == on_cpu.found.converged
    @test on_gpu.loss ≈ on_cpu.loss && all(on_gpu.gradient .≈ on_cpu.gradient)
    @test first(on_gpu.reports).n_failed == first(on_cpu.reports).n_failed
end
