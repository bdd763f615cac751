# What is compiled when the package is: one training step and one prediction of each kind that
# compiles code of its own. Widths, numbers of layers and batch sizes are no part of any type, so
# that this serves all of them.

function small_session(::Type{T}; n_state = 2, kwargs...) where {T}
    defaults = (;
        n_features = 3, n_outputs = 2, hidden_layer_sizes = [3], activation = "tanh",
        stability = "none", contraction = 0.9, horizon = nothing, solver = "tsit5",
        abstol = 1.0e-2, reltol = 1.0e-2, ode_abstol = 1.0e-6, ode_reltol = 1.0e-3,
        max_steps = 100, adjoint = "implicit", loss = "squared_error",
        learning_rate = 1.0e-3, alpha = 1.0e-4, jacobian_penalty = 0.0, train_encoder = true,
        device = "cpu",
    )
    settings = merge(defaults, values(kwargs))
    model = Model(;
        settings.n_features, settings.n_outputs, n_state, settings.hidden_layer_sizes,
        activation = Symbol(settings.activation), stability = Symbol(settings.stability),
        settings.contraction, settings.horizon,
    )
    # Small weights that are all alike: one equilibrium, found in a few steps.
    arrays = [fill(T(0.1), shape) for shape in parameter_shapes(model)]
    return open_session(; n_state, names = parameter_names(model), arrays, settings...)
end

"""A session whose parts have every kind of layer."""
function small_layers(::Type{T}; stability, kwargs...) where {T}
    layer, x, h = described_layer, (4, 4, 1), (2, 2, 2)
    norm = layer("GroupNorm", "encoder.1", h, h; groups = 2)
    encoder = [layer("Conv", "encoder.0", x, h; kernel_size = 3, stride = 2), norm]
    block = [layer("Conv", "cell.0.0", h, h; kernel_size = 2, padding = "circular")]
    cell = [
        layer("Residual", "cell.0", h, h; layers = block),
        layer("Activation", "cell", h, h; activation = "tanh"),
        layer("Activation", "cell", h, h; activation = "relu"), layer("Conv", "cell.1", h, h),
    ]
    pools = [layer("MeanPool", "", h, h; size = 1), layer("MaxPool", "", h, (1, 1, 2))]
    head = [layer("Flatten", "", (1, 1, 2), (2,)), layer("Dense", "decoder", (2,), (2,))]
    parts = (
        described_network(encoder, x, h), described_network(cell, h, h),
        described_network([pools; head], h, (2,)),
    )
    names = reduce(vcat, parameter_names.(parts, nothing))
    arrays = [fill(T(0.1), shape) for part in parts for shape in part.shapes]
    return small_session(T; n_state = 8, n_features = 16, stability, layers = parts, names, arrays, kwargs...)
end

function fit_and_predict(session::Session{T}, n_features = size(first(get_arrays(session)), 2)) where {T}
    x = T.(reshape(1:(3n_features), n_features, 3)) ./ T(3n_features)
    target = session.training.loss === :log_loss ? Int32[1, 2, 1] : ones(T, 2, 3)
    load_data!(session, x, target, ones(T, 3))
    saved = snapshot(session)
    train_batch!(session, [1, 2, 3], ones(T, session.model.width))
    restore!(session, saved)
    equilibrium(session, x; each = true)
    optimizer_state(session)
    return get_arrays(session)
end

@setup_workload begin
    @compile_workload begin
        for T in (Float32, Float64)
            # What the estimators take by default, with either loss; every activation; every way of
            # keeping a cell stable.
            fit_and_predict(
                small_session(T; stability = "contractive", solver = "anderson", loss = "log_loss")
            )
            for activation in ("identity", "logistic", "relu", "tanh")
                fit_and_predict(small_session(T; activation))
            end
            fit_and_predict(small_session(T; stability = "jacobian", jacobian_penalty = 0.1))
            monotone = (; stability = "monotone", hidden_layer_sizes = Int[])
            fit_and_predict(small_session(T; monotone..., solver = "peaceman_rachford"))
            solver, jacobian = "anderson", (; stability = "jacobian", jacobian_penalty = 0.1)
            fit_and_predict(small_layers(T; solver, stability = "contractive", loss = "log_loss"), 16)
            fit_and_predict(small_layers(T; solver, jacobian...), 16)
            # The other solvers have the same adjoint.
            for solver in ("broyden", "fixed_point", "newton")
                equilibrium(small_session(T; solver), ones(T, 3, 2))
            end
        end
    end
end
