/**
 * What a load leaves for later, where kernels are compiled on the device: those of training, and their check.
 * A class's first job waits for its own; nobody else does.
 */
import type { Manifest } from "./bundle.ts";
import type { Device } from "./device.ts";
import { checkedLater, type OpenHost, trainsAlike, type Verdict } from "./invariance.ts";
import { trainingPrograms } from "./programs.ts";

export class Arrivals {
  private readonly checks = new Map<string, Promise<boolean>>();
  constructor(
    private readonly manifest: Manifest,
    private readonly device: Device,
    private readonly verdict: Verdict,
    private readonly open: OpenHost,
  ) {}
  /**
   * Compile what a job plays, unless that was done. Resolves with whether its gradients are batch-invariant
   * here. Throws WEFT_DEVICE for a kernel that the device refuses; who serves is not concerned.
   */
  async training(cls: string, optimizer: string): Promise<boolean> {
    const { later, plan } = this.device;
    await later?.prepare(trainingPrograms(plan.programs, cls, optimizer));
    if (!checkedLater(this.manifest, this.device)) return true;
    const known = this.verdict.trained.get(cls) ?? (await this.check(cls));
    this.verdict.trained.set(cls, known);
    return known;
  }
  /** Jobs that begin together wait for one check; one that failed to run is run again. */
  private check(cls: string): Promise<boolean> {
    const known = this.checks.get(cls);
    if (known) return known;
    const { manifest, device, verdict } = this;
    const made = trainsAlike(manifest, device, cls, verdict.families, this.open);
    this.checks.set(cls, made);
    void made.catch(() => this.checks.delete(cls));
    return made;
  }
}
