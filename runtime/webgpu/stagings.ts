/** Buffers that what is read back is copied into. */
const STEP = 65536;
/** Kept for the next reads. */
const KEPT = 2;

export class Stagings {
  private readonly idle: GPUBuffer[] = [];
  constructor(private readonly device: GPUDevice) {}
  take(bytes: number): GPUBuffer {
    const at = this.idle.findIndex((b) => b.size >= bytes);
    if (at >= 0) return this.idle.splice(at, 1)[0]!;
    return this.device.createBuffer({
      label: "read back",
      size: Math.ceil(bytes / STEP) * STEP,
      usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ,
    });
  }
  give(buffer: GPUBuffer): void {
    this.idle.push(buffer);
    if (this.idle.length <= KEPT) return;
    // The small ones go: the next step may need a large one again.
    this.idle.sort((a, b) => b.size - a.size);
    this.idle.pop()!.destroy();
  }
  destroy(): void {
    for (const buffer of this.idle) buffer.destroy();
  }
}
