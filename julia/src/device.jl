# Where a session works. The CUDA extension adds the methods for `CUDADevice`.

abstract type Device end

struct CPUDevice <: Device end

"""An NVIDIA GPU; usable once CUDA is loaded, which loads the extension."""
struct CUDADevice <: Device end

"""
    is_usable(device) -> Bool

Whether arrays can be moved to the device in this process.
"""
is_usable(::Device) = false
is_usable(::CPUDevice) = true

"""
    to_device(device, array)

Return `array` on the device; what is there already is not copied.
"""
function to_device end

to_device(::CPUDevice, array::AbstractArray) = convert(Array, array)

"""
    has_cuda() -> Bool

Whether a session can be opened with `device = "cuda"`.
"""
has_cuda() = is_usable(CUDADevice())

find_device(device::Device) = device
function find_device(name::AbstractString)
    name == "cpu" && return CPUDevice()
    name == "auto" && return has_cuda() ? CUDADevice() : CPUDevice()
    name == "cuda" || throw(ArgumentError("device is auto, cpu or cuda; found $(repr(name))."))
    has_cuda() && return CUDADevice()
    throw(
        ArgumentError(
            "device=\"cuda\" was asked for, but this Julia process has no usable CUDA. It needs " *
                "an NVIDIA GPU and the package CUDA, loaded before. Use device=\"cpu\" or " *
                "device=\"auto\" otherwise.",
        ),
    )
end
