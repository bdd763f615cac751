# What is compiled when the package is: the first fit and the first prediction of what estimators take
# by default, of the presets, and of one model of layers. Widths, numbers of layers and batch sizes are
# no part of any type, so that this serves all of them. (`calls/` does the same through PythonCall.)

directly(f, args...) = f(args...)

function small_session(::Type{T}; n_state = 2, call = directly, kwargs...) where {T}
    defaults = (;
        n_features = 3, n_outputs = 2, hidden_layer_sizes = [3], activation = "tanh",
        stability = "none", contraction = 0.9, horizon = nothing, solver = "tsit5",
        abstol = 1.0e-2, reltol = 1.0e-2, ode_abstol = 1.0e-6, ode_reltol = 1.0e-3,
        max_steps = 100, adjoint = "implicit", loss = "squared_error",
        learning_rate = 1.0e-3, alpha = 1.0e-4, jacobian_penalty = 0.0, train_encoder = true,
        device = "cpu",
    )
    settings = merge(defaults, values(kwargs))
    model = model_of(merge(OPTIONAL_SETTINGS, Dict{Symbol, Any}(pairs((; settings..., n_state)))))
    # Small weights that are all alike: one equilibrium, found in a few steps.
    arrays = Any[fill(T(0.1), shape) for shape in parameter_shapes(model)]
    given = (; n_state, names = parameter_names(model), arrays, settings...)
    return call(open_session, String[string(name) for name in keys(given)], Any[values(given)...])
end

"""A session whose parts have every kind of layer."""
function small_layers(::Type{T}; stability, kwargs...) where {T}
    x, h = (4, 4, 1), (2, 2, 2)
    layer(kind, name, given, gives; options...) = described_layer(
        kind, name, collect(given), collect(gives), String[string(key) for key in keys(options)],
        Any[values(options)...],
    )
    conv(name, given, gives; kernel_size = 1, stride = 1, padding = "zero") =
        layer("Conv", name, given, gives; kernel_size, stride, padding)
    act(activation) = layer("Activation", "cell", h, h; activation)
    norm = layer("GroupNorm", "encoder.1", h, h; groups = 2, epsilon = 1.0e-5)
    encoder = Any[conv("encoder.0", x, h; kernel_size = 3, stride = 2), norm]
    block = Any[conv("cell.0.0", h, h; kernel_size = 2, padding = "circular")]
    cell = Any[layer("Residual", "cell.0", h, h; layers = block), act("tanh"), act("relu"), conv("cell.1", h, h)]
    pools = Any[layer("MeanPool", "", h, h; size = 1), layer("MaxPool", "", h, (1, 1, 2); size = 2)]
    head = Any[layer("Flatten", "", (1, 1, 2), (2,)), layer("Dense", "decoder", (2,), (2,))]
    parts = (
        described_network(encoder, x, h), described_network(cell, h, h),
        described_network([pools; head], h, (2,)), nothing,
    )
    return small_session(T; n_state = 8, n_features = 16, stability, layers = parts, kwargs...)
end

"""Do what Python does in a fit and in a prediction, by arrays in memory of its own."""
function fit_and_predict(session::Session{T}, n_features = 3; call = directly) where {T}
    n = 3
    x = T.(reshape(1:(n_features * n), n_features, n)) ./ T(n_features * n)
    target = session.training.loss === :log_loss ? Int32[1, 2, 1] : ones(T, 2, n)
    probe = ones(T, session.model.width)
    arrays = Any[zeros(T, shape) for shape in parameter_shapes(session.model)]
    call(load_data!, session, x, target, ones(T, n))
    saved = call(snapshot, session)
    call(write_step!, session, [1, 2, 3], probe, 0, zeros(7))
    call(restore!, session, saved)
    state, output = Matrix{T}(undef, session.model.width, n), Matrix{T}(undef, 2, n)
    call(write_equilibrium!, session, x, state, output, zeros(T, n), zeros(Int, n), fill(false, n))
    work_by_threads(session, x, target, probe)
    call(write_params!, session, arrays)
    call(write_moments!, session, arrays, arrays)
    for array in (x, target, state, zeros(T, 2))
        kind = lowercase(string(eltype(array)))
        GC.@preserve array call(array_at, kind, Int(pointer(array)), size(array)...)
    end
    return session
end

"""Predict and train as two threads do, though there is one: by parts."""
function work_by_threads(session::Session{T}, x, target, probe) where {T}
    n = PART + 1
    columns = mod1.(1:n, size(x, 2))
    many(a) = ndims(a) == 2 ? a[:, columns] : a[columns]
    session.n_threads = 2
    state, output = Matrix{T}(undef, session.model.width, n), Matrix{T}(undef, 2, n)
    write_equilibrium!(session, many(x), state, output, zeros(T, n), zeros(Int, n), fill(false, n))
    load_data!(session, many(x), many(target), ones(T, n))
    write_step!(session, collect(1:n), probe, 0, zeros(7))
    return nothing
end

@setup_workload begin
    @compile_workload begin
        for T in (Float32, Float64)
            solver, loss = "anderson", "log_loss"
            fit_and_predict(small_session(T; activation = "relu", stability = "contractive", solver, loss))
            fit_and_predict(small_session(T))
            fit_and_predict(small_layers(T; solver, stability = "contractive", loss), 16)
        end
    end
end
