export { coserve } from "./coserve";
export { fcfs } from "./fcfs";
