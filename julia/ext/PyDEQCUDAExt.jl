"""
Sessions on an NVIDIA GPU. Run on one H100, with CUDA.jl 5.9.7: see "On a GPU" in
`examples/guides/measurements.md`.
"""
module PyDEQCUDAExt

using CUDA: CUDA, CuArray
using PyDEQ: PyDEQ

PyDEQ.is_usable(::PyDEQ.CUDADevice) = CUDA.functional()

function PyDEQ.to_device(::PyDEQ.CUDADevice, array::AbstractArray)
    # A slow path by single numbers is a bug, to be seen and not to be waited for.
    CUDA.allowscalar(false)
    return CuArray(Array(array))
end

end
